package main

import (
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cloud-provider/app"
	appconfig "k8s.io/cloud-provider/app/config"
	"k8s.io/cloud-provider/names"
	"k8s.io/cloud-provider/options"
	cliflag "k8s.io/component-base/cli/flag"
	"k8s.io/component-base/cli/globalflag"
	"k8s.io/component-base/term"

	"github.com/eclusa-lb/eclusa/provider"
	"github.com/eclusa-lb/eclusa/version"
)

const programName = "eclusa-cloud-controller-manager"

// What fits clusters of 5,000 Services. With these rates the stock controller
// sends an Event for each of them when the program starts, and patches the
// finalizer of new ones; nobody waits for either. Our own writer, for which people
// wait, has a rate of its own, and an API server that is not to be kept busy by
// others.
const (
	defaultQPS          = 100
	defaultBurst        = 200
	defaultServiceSyncs = 10
)

// program is what the flags say.
type program struct {
	stock *options.CloudControllerManagerOptions
	log   logOptions
	flags *pflag.FlagSet
	// checkOnly ends the program after the configuration was read.
	checkOnly bool
}

func newCommand() *cobra.Command {
	p := &program{}
	cmd := &cobra.Command{
		Use: programName + " --cloud-config FILE",
		Long: `eclusa-cloud-controller-manager gives Services of type LoadBalancer their
addresses and has the edges of the cluster serve them. It is a Kubernetes
cloud-controller-manager of which only the controllers for Services exist: it
may run beside the one of a cloud.

It exits with 1 if something that it needs failed, with 2 if flags or the
configuration file are wrong, with 3 if it lost its Lease to another, and with 0
after SIGTERM or SIGINT.`,
		Version:       version.String(),
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return p.main(cmd) },
	}
	cmd.SetVersionTemplate(programName + " {{.Version}}\n")
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return &usageError{fmt.Errorf("%w; --help shows all flags", err)}
	})
	stock, err := newStockOptions()
	if err != nil {
		cmd.RunE = func(*cobra.Command, []string) error { return err }
		return cmd
	}
	p.stock = stock
	p.addFlags(cmd)
	return cmd
}

// newStockOptions returns the options of the stock app with our defaults.
func newStockOptions() (*options.CloudControllerManagerOptions, error) {
	s, err := options.NewCloudControllerManagerOptions()
	if err != nil {
		return nil, fmt.Errorf("making the default options: %w", err)
	}
	s.KubeCloudShared.CloudProvider.Name = provider.Name
	s.Generic.LeaderElection.ResourceName = programName
	s.Generic.ClientConnection.QPS = defaultQPS
	s.Generic.ClientConnection.Burst = defaultBurst
	s.ServiceController.ConcurrentServiceSyncs = defaultServiceSyncs
	s.SecureServing.ServerCert.PairName = programName
	// There are none, and without them two ports less to think about.
	s.Webhook, s.WebhookServing = nil, nil
	return s, nil
}

func (p *program) addFlags(cmd *cobra.Command) {
	sets := p.stock.Flags(controllerNames(), app.ControllersDisabledByDefault.List(), aliases(), nil, nil)
	globalflag.AddGlobalFlags(sets.FlagSet("global"), cmd.Name())
	own := sets.FlagSet("eclusa")
	p.log.addFlags(own)
	own.BoolVar(&p.checkOnly, "check-config", false, "Say what is wrong with the configuration and exit.")
	own.Bool("version", false, "Print the version and exit.")
	p.flags = cmd.Flags()
	for _, set := range sets.FlagSets {
		p.flags.AddFlagSet(set)
	}
	usage := func(w io.Writer) {
		cols, _, _ := term.TerminalSize(w) // zero, for no limit, if w is no terminal
		fmt.Fprintf(w, "Usage:\n  %s\n", cmd.UseLine())
		cliflag.PrintSections(w, sets, cols)
	}
	cmd.SetUsageFunc(func(c *cobra.Command) error { usage(c.OutOrStderr()); return nil })
	cmd.SetHelpFunc(func(c *cobra.Command, _ []string) {
		fmt.Fprintf(c.OutOrStdout(), "%s\n\n", c.Long)
		usage(c.OutOrStdout())
	})
	cmd.SetGlobalNormalizationFunc(cliflag.WordSepNormalizeFunc)
}

func controllerNames() []string { return []string{provider.ClassController, provider.StockController} }

// aliases are the older names of the controllers that there are.
func aliases() map[string]string {
	known := make(map[string]string)
	for alias, name := range names.CCMControllerAliases() {
		if name == provider.StockController {
			known[alias] = name
		}
	}
	return known
}

// main reads everything that can be wrong before anything is begun.
func (p *program) main(cmd *cobra.Command) error {
	verbosity, err := strconv.Atoi(p.flags.Lookup("v").Value.String())
	if err != nil {
		return &usageError{fmt.Errorf("-v: %w", err)}
	}
	log, levels, err := p.log.build(verbosity)
	if err != nil {
		return err
	}
	defer log.Sync() //nolint:errcheck // standard error has nothing to sync
	config, err := p.readConfig()
	if err != nil {
		return &usageError{err}
	}
	claimed := map[string]string{"clusterName": config.ClusterName}
	if p.flags.Changed("cluster-name") {
		claimed["--cluster-name"] = p.stock.KubeCloudShared.ClusterName
	}
	creds, err := newCredentials(config.Client, claimed, log.Named("credentials"))
	if err != nil {
		return &usageError{err}
	}
	p.stock.KubeCloudShared.ClusterName = string(creds.cluster)
	if p.checkOnly {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: nothing to complain about, cluster %q\n", p.cloudConfig(), creds.cluster)
		return err
	}
	completed, err := p.complete()
	if err != nil {
		return err
	}
	return run(cmd.Context(), completed, config, creds, levels, log)
}

func (p *program) cloudConfig() string { return p.stock.KubeCloudShared.CloudProvider.CloudConfigFile }

// readConfig checks what the stock options do not, and reads the file.
func (p *program) readConfig() (Config, error) {
	switch s := p.stock; {
	case s.KubeCloudShared.CloudProvider.Name != provider.Name:
		return Config{}, fmt.Errorf("--cloud-provider: %q: must be %q", s.KubeCloudShared.CloudProvider.Name, provider.Name)
	case !s.Generic.LeaderElection.LeaderElect:
		return Config{}, errors.New("--leader-elect=false: edges let only those write who prove with the Lease that they lead")
	case s.Generic.LeaderMigration.Enabled:
		return Config{}, errors.New("--enable-leader-migration: there is nothing to migrate from, since no other controller manager serves these Services")
	case p.cloudConfig() == "":
		return Config{}, errors.New("--cloud-config is missing: it must name the configuration file")
	}
	return readConfig(p.cloudConfig())
}

// complete checks the stock options and makes of them what a controller manager
// needs.
func (p *program) complete() (*appconfig.CompletedConfig, error) {
	if err := p.stock.Validate(controllerNames(), app.ControllersDisabledByDefault.List(), aliases(), nil, nil); err != nil {
		return nil, &usageError{err}
	}
	c, err := p.stock.Config(controllerNames(), app.ControllersDisabledByDefault.List(), aliases(), nil, nil)
	if err != nil {
		return nil, err
	}
	return c.Complete(), nil
}
