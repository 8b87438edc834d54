// Package ipam decides which claim gets which address.
//
// [Assign] is one pure function over everything: all pools, all claims with the
// addresses that they hold, and the addresses that nobody may have yet. It keeps
// what is held, prefers older claims, and tells for every claim that goes without
// an address the reason and the remedy. Its result does not depend on the order
// of its input, and assigning again with the result as what is held changes
// nothing. Nothing is stored here: the claims are the record.
package ipam
