package main

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/eclusa-lb/eclusa/report"
	"github.com/eclusa-lb/eclusa/version"
)

// program is what the flags say, and what commands share.
type program struct {
	rules     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides
	output    string
	server    string
	lease     struct{ namespace, name string }
	manager   struct{ namespace, account string }
	now       func() time.Time
	cluster   *cluster // once connected
}

func newProgram() *program {
	return &program{rules: clientcmd.NewDefaultClientConfigLoadingRules(), overrides: &clientcmd.ConfigOverrides{}, now: time.Now}
}

func newCommand(p *program) *cobra.Command {
	klog.SetLogger(logr.Discard()) // what libraries say is for developers
	root := &cobra.Command{
		Use:   "kubectl-eclusa",
		Short: "See and explain how Services of type LoadBalancer are served",
		Long: `See how eclusa serves Services of type LoadBalancer, why one is not served, and
what a change would do; take edges and nodes out of service.

It asks the leader of eclusa-cloud-controller-manager, found through its Lease and
reached through the API server. Without a leader, or the right to ask it, it shows
what Conditions, Edges and AddressPools say, and tells so.

It exits with 0 if all is well, 1 if it found a problem, 2 if arguments or files
are wrong, 3 if the API server is not reached or does not allow it, 4 if there is
no such object, and 5 if something else failed.`,
		Version:       version.String(),
		SilenceUsage:  true,
		SilenceErrors: true,
		Annotations:   map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl eclusa"},
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usageError(fmt.Errorf("a command is missing; %s --help shows all", cmd.CommandPath()))
		},
	}
	root.SetVersionTemplate("kubectl-eclusa {{.Version}}\n")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(fmt.Errorf("%w; %s --help shows all flags", err, cmd.CommandPath()))
	})
	p.addFlags(root)
	root.AddCommand(p.statusCommand(), p.explainCommand(), p.planCommand(), p.drainCommand(), p.undrainCommand(), p.bundleCommand())
	return root
}

// addFlags adds those flags of kubectl that matter here, and ours.
func (p *program) addFlags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.StringVar(&p.rules.ExplicitPath, "kubeconfig", "", "Path of the kubeconfig file.")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	for _, f := range []*clientcmd.FlagInfo{
		// --server names the leader here, and the rest belongs into a kubeconfig.
		&names.ClusterOverrideFlags.APIServer, &names.ClusterOverrideFlags.APIVersion, &names.ClusterOverrideFlags.CertificateAuthority,
		&names.ClusterOverrideFlags.InsecureSkipTLSVerify, &names.ClusterOverrideFlags.TLSServerName, &names.ClusterOverrideFlags.ProxyURL,
		&names.ClusterOverrideFlags.DisableCompression, &names.AuthOverrideFlags.ClientCertificate, &names.AuthOverrideFlags.ClientKey,
		&names.AuthOverrideFlags.Username, &names.AuthOverrideFlags.Password, &names.AuthOverrideFlags.ImpersonateUID,
	} {
		f.LongName = ""
	}
	names.Timeout.Default = "15s"
	names.Timeout.Description = "How long one request may take, with unit, such as 15s."
	clientcmd.BindOverrideFlags(p.overrides, flags, names)
	flags.StringVarP(&p.output, "output", "o", "", "Output format: json, yaml or wide; tables without it.")
	flags.StringVar(&p.server, "server", "", "Where the leader serves, https://HOST:PORT, if it runs outside the cluster; without it, it is reached through the API server.")
	flags.StringVar(&p.lease.namespace, "lease-namespace", "kube-system", "Namespace of the Lease that the leader holds.")
	flags.StringVar(&p.lease.name, "lease-name", "eclusa-cloud-controller-manager", "Name of the Lease that the leader holds.")
	flags.StringVar(&p.manager.namespace, "manager-namespace", "", "Namespace of the manager's pods, if it is not that of the Lease.")
	flags.StringVar(&p.manager.account, "manager-service-account", "eclusa-cloud-controller-manager", "ServiceAccount of the manager's pods; credentials are sent to no other.")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

// managerNamespace returns where the manager's pods are.
func (p *program) managerNamespace() string { return cmp.Or(p.manager.namespace, p.lease.namespace) }

var outputs = []string{"json", "yaml", "wide"}

// checkOutput complains about --output.
func (p *program) checkOutput() error {
	if p.output != "" && !slices.Contains(outputs, p.output) {
		return usageError(fmt.Errorf("--output: %q: must be %s", p.output, strings.Join(outputs, ", ")))
	}
	return nil
}

// printer returns where a command prints to.
func (p *program) printer(cmd *cobra.Command) *printer {
	out := cmd.OutOrStdout()
	colour := false
	if f, ok := out.(*os.File); ok {
		_, refused := os.LookupEnv("NO_COLOR")
		colour = term.IsTerminal(int(f.Fd())) && (!refused || os.Getenv("NO_COLOR") == "") && os.Getenv("TERM") != "dumb"
	}
	return &printer{out: out, colour: colour, wide: p.output == "wide"}
}

// finish prints a report in the format that was asked for, and returns what its
// level means.
func (p *program) finish(cmd *cobra.Command, level report.Level, value any, table func(*printer)) error {
	pr := p.printer(cmd)
	switch p.output {
	case "json":
		pr.json(value)
	case "yaml":
		pr.yaml(value)
	default:
		table(pr)
	}
	if pr.err != nil {
		return fmt.Errorf("writing the output: %w", pr.err)
	}
	if level == report.Problem {
		return errProblem
	}
	return nil
}

// remark tells on standard error why less is shown than could be.
func (p *program) remark(cmd *cobra.Command, err error) string {
	text := "without the leader: " + err.Error()
	fmt.Fprintln(cmd.ErrOrStderr(), text)
	return text
}

// exactly is as cobra.ExactArgs, and says what is missing.
func exactly(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(what) {
			return nil
		}
		return usageError(fmt.Errorf("%d arguments, must be %s; %s --help shows how", len(args), strings.Join(what, " "), cmd.CommandPath()))
	}
}
