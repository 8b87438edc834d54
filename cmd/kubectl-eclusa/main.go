// Command kubectl-eclusa is a plugin of kubectl that says how Services of type
// LoadBalancer are served by eclusa, why one is not, what a change would do, and
// that takes edges and nodes out of service. It needs access to Kubernetes only.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// What the program exits with.
const (
	exitProblem  = 1 // a problem was found
	exitUsage    = 2 // arguments, flags or files are wrong
	exitAccess   = 3 // the API server is not reached, or does not allow it
	exitNotFound = 4 // there is no such object
	exitFailed   = 5 // something else failed
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newCommand(newProgram()).ExecuteContext(ctx)
	stop()
	if err != nil && !errors.Is(err, errProblem) {
		fmt.Fprintln(os.Stderr, "kubectl eclusa:", err)
	}
	os.Exit(exitCode(err))
}

// errProblem says that a problem was found and has been told.
var errProblem = errors.New("a problem was found")

// coded is an error with what the program exits with.
type coded struct {
	error
	code int
}

func (e *coded) Unwrap() error { return e.error }

func usageError(err error) error { return &coded{err, exitUsage} }

func exitCode(err error) int {
	var c *coded
	switch {
	case err == nil:
		return 0
	case errors.As(err, &c):
		return c.code
	case errors.Is(err, errProblem):
		return exitProblem
	}
	return exitFailed
}
