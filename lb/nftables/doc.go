// Package nftables is the data plane in the kernel.
package nftables
