package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/lab"
)

// defaultDir is where `lab up` keeps a lab, so that `lab down` finds it.
func defaultDir(name string) string {
	return filepath.Join("/var/tmp", "eclusa-lab-"+name)
}

func buildCommand() *cobra.Command {
	helm := false
	c := &cobra.Command{
		Use:   "build",
		Short: "Build the programs of Kubernetes, once per version",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			build := lab.Build
			if helm {
				build = lab.BuildHelm
			}
			dir, err := build(c.Context(), c.ErrOrStderr())
			if err == nil {
				fmt.Fprintln(c.OutOrStdout(), dir)
			}
			return err
		},
	}
	c.Flags().BoolVar(&helm, "helm", false, "build Helm 3 and 4 instead")
	return c
}

// optionFlags are the flags of the commands that bring a lab up.
func optionFlags(c *cobra.Command, o *lab.Options) {
	f := c.Flags()
	f.StringVar(&o.Name, "name", "eclusa", "name of the lab")
	f.StringVar(&o.Dir, "dir", "", "directory of the lab (default /var/tmp/eclusa-lab-NAME)")
	f.StringVar(&o.LogDir, "log-dir", "", "where to keep the logs of all programs (default: in the lab's directory, gone with the lab)")
	f.IntVar(&o.Nodes, "nodes", 2, "number of nodes, -1 for none")
	f.IntVar(&o.Edges, "edges", 1, "number of edges, -1 for none")
	f.IntVar(&o.Clients, "clients", 1, "number of clients, -1 for none")
	f.BoolVar(&o.EdgePackages, "edge-packages", false, "install the edges from their Debian package, each under a systemd of its own")
	f.BoolVar(&o.SingleStack, "single-stack", false, "a cluster without IPv6")
	f.BoolVar(&o.NoEclusa, "no-eclusa", false, "the cluster alone")
}

func upCommand() *cobra.Command {
	var o lab.Options
	c := &cobra.Command{
		Use:   "up",
		Short: "Bring a lab up and leave it running",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Log = c.ErrOrStderr()
			if o.Dir == "" {
				o.Dir = defaultDir(o.Name)
			}
			l, err := lab.Up(c.Context(), o)
			if err != nil {
				return err
			}
			if err := l.Detach(); err != nil {
				return errors.Join(err, l.Down())
			}
			return printUsage(c.OutOrStdout(), l)
		},
	}
	optionFlags(c, &o)
	return c
}

// usage tells what can be done with a lab that runs.
var usage = template.Must(template.New("usage").Parse(`
The lab runs. For kubectl{{if .Eclusa}} and helm{{end}} in this shell:

    export PATH={{.Lab.Options.Dir}}:$PATH
{{- if .Eclusa}}
    helm list --all-namespaces
{{- end}}
    kubectl get nodes,services
{{- if .Lab.Nodes}}

Try:

    kubectl create deployment web --image={{.Image}} --replicas=2
    kubectl expose deployment web --type=LoadBalancer --port=80 --target-port=8080
    kubectl get service web
    {{.Self}} exec --dir {{.Lab.Options.Dir}} client-1 -- curl http://ADDRESS/
{{- end}}
{{- if .Lab.Edges}}

What eclusa says of it, in the cluster and, as a page for your browser, on the edge:

    kubectl get edges,addresspools
    kubectl get service web -o yaml
    {{.Self}} forward --dir {{.Lab.Options.Dir}} edge-1 127.0.0.1:9980
{{- end}}
{{- if .Eclusa}}

Change it as you would at home:

    helm get values eclusa --namespace kube-system
    helm upgrade eclusa charts/eclusa --namespace kube-system --reuse-values --set controllerManager.logLevel=debug
{{- end}}

Logs are in {{.Lab.Options.LogDir}}. Take it down with

    {{.Self}} down --dir {{.Lab.Options.Dir}}
`))

func printUsage(w io.Writer, l *lab.Lab) error {
	return usage.Execute(w, map[string]any{
		"Lab": l, "Eclusa": !l.Options.NoEclusa, "Image": lab.WorkloadImage, "Self": self(),
	})
}

// self is how the user calls this program again.
func self() string {
	if _, err := os.Stat("lab/cmd/lab/main.go"); err == nil {
		return "go run ./lab/cmd/lab"
	}
	return os.Args[0]
}

// dirFlags are the flags by which a running lab is found.
func dirFlags(c *cobra.Command) (dir func() string) {
	name := c.Flags().String("name", "eclusa", "name of the lab")
	given := c.Flags().String("dir", "", "directory of the lab (default /var/tmp/eclusa-lab-NAME)")
	return func() string {
		if *given != "" {
			return *given
		}
		return defaultDir(*name)
	}
}

func downCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "down",
		Short: "Take a lab down completely, also one whose owner was killed",
		Args:  cobra.NoArgs,
	}
	dir := dirFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := lab.Clean(dir()); err != nil {
			return err
		}
		fmt.Fprintf(c.OutOrStdout(), "no lab in %s any more\n", dir())
		return nil
	}
	return c
}

func statusCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the hosts and programs of a running lab",
		Args:  cobra.NoArgs,
	}
	dir := dirFlags(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		l, err := open(dir())
		if err != nil {
			return err
		}
		return printStatus(c.Context(), c.OutOrStdout(), l)
	}
	return c
}

func printStatus(ctx context.Context, out io.Writer, l *lab.Lab) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tIPV4\tIPV6\tUP")
	for _, h := range l.Hosts() {
		fmt.Fprintf(w, "%s\t%s\t%s\t%v\n", h.Name, h.Addr4, h.Addr6, h.Alive())
	}
	fmt.Fprintln(w, "\nPROGRAM\tHOST\tPID\tMEMORY")
	for _, p := range l.Processes() {
		memory := "does not run"
		if rss, err := p.RSS(); p.Running() && err == nil {
			memory = fmt.Sprintf("%d MB", rss>>20)
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", p.Name, p.Host.Name, p.PID(), memory)
	}
	replicas, err := l.Manager.Replicas(ctx)
	if err != nil {
		return errors.Join(w.Flush(), err)
	}
	for _, r := range replicas {
		if rss, err := r.RSS(); err == nil && len(l.Nodes) > 0 { // else it is among the programs
			fmt.Fprintf(w, "%s\t%s\t%d\t%d MB\n", r.Name, r.Host.Name, r.PID(), rss>>20)
		}
	}
	return w.Flush()
}

func execCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec HOST -- COMMAND ARGUMENTS...",
		Short: "Run a command on a host of a running lab",
		Args:  cobra.MinimumNArgs(2),
	}
	dir := dirFlags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		l, err := open(dir())
		if err != nil {
			return err
		}
		h := l.Host(args[0])
		if h == nil {
			return fmt.Errorf("host %q: the lab has none of that name", args[0])
		}
		cmd := h.Command(c.Context(), args[1:]...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
		return cmd.Run()
	}
	return c
}

func open(dir string) (*lab.Lab, error) {
	l, err := lab.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no lab is up in %s", dir)
	}
	return l, err
}
