package main

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/spelling"
)

func newClusterCommand() *cobra.Command {
	c := &cobra.Command{Use: "cluster", Short: "About the clusters that use this edge"}
	c.AddCommand(newAcceptCommand())
	return c
}

func newAcceptCommand() *cobra.Command {
	var path, stateDir string
	c := &cobra.Command{
		Use:   "accept NAME",
		Short: "Let another Kubernetes cluster take over a name",
		Long: `Let another Kubernetes cluster take over a name.

The first cluster that claims a name is remembered by the UID of its namespace
kube-system, and any other one with the same certificate is refused: a restored
or cloned cluster would fight with the original for its addresses. This command
forgets the UID; the next cluster that claims the name is remembered instead.
Make sure that the former one has stopped. The edge may be running.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			name := args[0]
			if path != "" {
				config, err := readConfig(path)
				if err != nil {
					return err
				}
				if err := config.known(name); err != nil {
					return err
				}
				stateDir = config.StateDir
			}
			pinned, err := edge.Accept(stateDir, lb.Cluster(name))
			if err != nil {
				return err
			}
			tell(c.ErrOrStderr(), "Forgot that %q was the cluster with kube-system UID %s. The next one that claims the name is accepted.", name, pinned)
			return nil
		},
	}
	c.Flags().StringVar(&path, "config", "", "the edge's configuration file, for its stateDir")
	c.Flags().StringVar(&stateDir, "state-dir", DefaultConfig().StateDir, "the edge's stateDir, if no --config is given")
	return c
}

// known returns an error if the edge does not serve a cluster of this name.
func (c Config) known(name string) error {
	names := make([]string, len(c.Clusters))
	for i, cluster := range c.Clusters {
		names[i] = cluster.Name
	}
	if slices.Contains(names, name) {
		return nil
	}
	return fmt.Errorf("cluster %q: is not in the configuration; %s", name, spelling.Hint(name, names))
}
