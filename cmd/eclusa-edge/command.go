package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/version"
)

func newCommand() *cobra.Command {
	var path string
	var checkOnly, checkEngineOnly, cleanupOnly bool
	root := &cobra.Command{
		Use:   "eclusa-edge --config FILE",
		Short: "The external load balancer of Kubernetes clusters",
		Long: `eclusa-edge takes traffic on the addresses and standard ports of LoadBalancer
Services and forwards it to healthy nodes of their clusters.

Send SIGTERM or SIGINT to stop it: it takes no new connections and lets the open
ones end (drainTimeout). A second signal ends it at once. With "engine: nftables"
the kernel goes on serving, without health checks, until the next start; --cleanup
ends that.

Send SIGUSR2 or SIGHUP, or use "eclusa-edge upgrade", to replace the running
process by a new one of the same executable file and configuration file, both of
which may have changed: it takes over all sockets, and the process of before ends
when its last connections have (upgradeDrainTimeout). Starting a second
eclusa-edge with the same name and stateDir does the same.

Started by systemd with Type=notify it says when it serves, and with WatchdogSec
that it does not hang.

It exits with 1 if something that it needs failed, with 78 if flags or the
configuration file are wrong, and with 0 after SIGTERM or SIGINT.`,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			if path == "" {
				return &usageError{errors.New("--config is missing; `eclusa-edge config reference` prints a file to start from")}
			}
			config, err := readConfig(path)
			if err != nil {
				return &usageError{err}
			}
			if checkOnly {
				_, err := fmt.Fprintf(c.OutOrStdout(), "%s: nothing to complain about\n", path)
				return err
			}
			switch {
			case checkEngineOnly:
				return checkEngine(c.OutOrStdout(), config)
			case cleanupOnly:
				return cleanup(c.Context(), c.OutOrStdout(), config)
			}
			return run(c.Context(), config)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; --help shows all flags", err)}
	})
	root.SetVersionTemplate("eclusa-edge {{.Version}}\n")
	root.Flags().StringVar(&path, "config", "", "the configuration file (required)")
	root.Flags().BoolVar(&checkOnly, "check-config", false, "say what is wrong with the configuration and exit")
	root.Flags().BoolVar(&checkEngineOnly, "check-engine", false, "say whether the configured engine can work on this machine and exit")
	root.Flags().BoolVar(&cleanupOnly, "cleanup", false, "take what a stopped edge has left in the kernel away, tables and addresses, and exit")
	root.MarkFlagsMutuallyExclusive("check-config", "check-engine", "cleanup")
	root.AddCommand(newPKICommand(), newClusterCommand(), newWithdrawCommand(), newUpgradeCommand(), newConfigCommand(), newVersionCommand())
	return root
}

func newConfigCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "About the configuration file"}
	c.AddCommand(&cobra.Command{
		Use:   "reference",
		Short: "Print the commented reference of every key",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(c.OutOrStdout(), reference)
			return err
		},
	})
	return c
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "eclusa-edge", version.String())
			return err
		},
	}
}

// withConfig makes a command need the edge's configuration and nothing else.
func withConfig(c *cobra.Command, run func(c *cobra.Command, config Config) error) *cobra.Command {
	path := c.Flags().String("config", "", "the edge's configuration file (required)")
	c.Args = cobra.NoArgs
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *path == "" {
			return errors.New("--config is missing: the configuration file of the edge")
		}
		config, err := readConfig(*path)
		if err != nil {
			return err
		}
		return run(c, config)
	}
	return c
}
