// Command eclusa-edge is the external load balancer: it owns the addresses, takes
// traffic on the standard ports, checks the nodes' health, and forwards to the
// node ports of one or several Kubernetes clusters.
package main

import (
	"errors"
	"fmt"
	"os"
)

// What the program exits with. systemd starts it again after the first, and not
// after the second, which only a person can put right. That one is EX_CONFIG of
// sysexits.h: 2 is what Go itself ends a program with that panics or is aborted, as
// the watchdog does with one that hangs, and those must be started again.
const (
	exitFailed = 1  // something that was needed failed
	exitUsage  = 78 // flags or the configuration file are wrong
)

func main() {
	err := newCommand().Execute()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "eclusa-edge:", err)
	if _, usage := errors.AsType[*usageError](err); usage {
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

// usageError is an error of whoever started the program.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }
