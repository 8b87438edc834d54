// Command eclusa-cloud-controller-manager gives Services of type LoadBalancer
// their addresses, tells the edges what to serve, and writes back on the Service
// what became of it.
package main

import (
	"errors"
	"fmt"
	"os"
)

// What the program exits with. Kubernetes starts it again in any case; the codes
// tell people and tests apart what happened.
const (
	exitFailed    = 1 // something that was needed failed
	exitUsage     = 2 // flags or the configuration file are wrong
	exitNotLeader = 3 // the Lease was lost to another, or could not be renewed
)

func main() {
	err := newCommand().Execute()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, programName+":", err)
	os.Exit(exitCode(err))
}

// exitCode returns what the program exits with after an error of its command.
func exitCode(err error) int {
	var usage *usageError
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, errLeadershipLost):
		return exitNotLeader
	}
	return exitFailed
}

// usageError is an error of whoever started the program.
type usageError struct{ error }

func (e *usageError) Unwrap() error { return e.error }
