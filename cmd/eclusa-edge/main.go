// Command eclusa-edge is the external load balancer: it owns the addresses, takes
// traffic on the standard ports, checks the nodes' health, and forwards to the
// node ports of one or several Kubernetes clusters.
package main

import (
	"fmt"
	"os"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if err := newCommand().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "eclusa-edge:", err)
		os.Exit(1)
	}
}
