//go:build !race

package nftables

// raceFactor stretches limits of time under the race detector.
const raceFactor = 1
