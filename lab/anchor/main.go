// Command anchor is the small program behind a lab's hosts. It is run by the
// lab, not by people:
//
//	anchor hold            the first process of a host, which holds its namespaces
//	anchor watch DIR       clean the lab in DIR up when its owner has died
//	anchor enter PID ARGV  run a command inside the namespaces of a process
//	anchor leash ARGV      run a command that dies with its parent
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
)

func main() {
	err := run(os.Args[1:])
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "anchor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 1 && args[0] == "hold":
		return hold(os.Stdin, os.Stdout)
	case len(args) == 2 && args[0] == "watch":
		return watch(args[1], os.Stdin)
	case len(args) >= 3 && args[0] == "enter":
		pid, err := strconv.Atoi(args[1])
		if err != nil {
			return fmt.Errorf("process number %q: %w", args[1], err)
		}
		return enter(pid, args[2:])
	}
	if len(args) >= 2 && args[0] == "leash" {
		return leash(args[1:])
	}
	return fmt.Errorf("unknown arguments %q", args)
}
