// Command bench runs eclusa's engines and their peers side by side, in network
// namespaces on this machine, and writes what came of it as a report with ratios.
//
//	go run ./bench --engines haproxy,proxy --measures requests,connections --rounds 5
//
// In each round every engine is measured in a new order, and only figures of the
// same round are compared. See docs/benchmarks for what is measured and how. It
// needs root, and the machine for itself.
package main
