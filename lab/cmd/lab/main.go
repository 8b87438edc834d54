// Command lab brings up a real Kubernetes cluster with eclusa on this machine,
// in network namespaces, and takes it down again. See package lab.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// A second signal ends the program at once; the watcher then cleans up.
	context.AfterFunc(ctx, stop)
	err := root().ExecuteContext(ctx)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func root() *cobra.Command {
	c := &cobra.Command{
		Use:           "lab",
		Short:         "A Kubernetes cluster with eclusa, in network namespaces on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	c.AddCommand(buildCommand(), upCommand(), downCommand(), statusCommand(), execCommand(), forwardCommand(), demoCommand())
	return c
}
