//go:build !race

package lbtest

// raceFactor stretches limits of time under the race detector.
const raceFactor = 1
