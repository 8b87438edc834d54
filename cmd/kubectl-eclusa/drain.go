package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/report"
)

// mostLosses is how many Services that lose something are printed.
const mostLosses = 20

func (p *program) drainCommand() *cobra.Command {
	var simulate, force bool
	cmd := &cobra.Command{
		Use:   "drain EDGE|NODE",
		Short: "Take an edge or a node out of service",
		Long: `Take an edge or a node out of service, before maintenance. The argument is the name
of an Edge or a Node, or edge/NAME or node/NAME where both have it.

For an Edge it sets spec.drain: the edge takes no new connections of this cluster, lets
the established ones end and then its addresses go; other edges of its pools go on
serving them. For a Node it sets the label
node.kubernetes.io/exclude-from-external-load-balancers: edges send it no new
connections, established ones go on for the drain timeout of their Service. Pods stay
where they are; kubectl drain moves them.

First it finds out which Services lose edges that are reached and serve them, or nodes
that are up. If one of them, or one of its addresses, would be left without any,
nothing is done but with --force. With --simulate nothing is done in any case.`,
		Example: `  kubectl eclusa drain edge-1 --simulate
  kubectl eclusa drain node/worker-2`,
		Args:              exactly("EDGE|NODE"),
		ValidArgsFunction: p.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.checkOutput(); err != nil {
				return err
			}
			return p.drain(cmd, args[0], simulate, force)
		},
	}
	cmd.Flags().BoolVar(&simulate, "simulate", false, "Only tell what would happen.")
	cmd.Flags().BoolVar(&force, "force", false, "Drain though a Service would be left without any edge or node, or though that cannot be found out.")
	return cmd
}

func (p *program) undrainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "undrain EDGE|NODE",
		Short: "Put an edge or a node back into service",
		Long: `Put an edge or a node back into service: the reverse of drain. For a Node it removes
the label node.kubernetes.io/exclude-from-external-load-balancers, whoever set it.`,
		Example:           `  kubectl eclusa undrain edge-1`,
		Args:              exactly("EDGE|NODE"),
		ValidArgsFunction: p.completeTargets,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := p.connect()
			if err != nil {
				return err
			}
			t, err := c.target(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return c.setDrain(cmd, t, false)
		},
	}
}

// drainTarget is an edge or a node.
type drainTarget struct{ kind, name string }

func (t drainTarget) request() report.PlanRequest {
	if t.kind == "Edge" {
		return report.PlanRequest{Drain: &report.Drain{Edge: t.name}}
	}
	return report.PlanRequest{Drain: &report.Drain{Node: t.name}}
}

// target finds out what an argument names.
func (c *cluster) target(ctx context.Context, arg string) (drainTarget, error) {
	kind, name, both := strings.Cut(arg, "/")
	if both {
		switch strings.ToLower(kind) {
		case "edge", "edges":
			return drainTarget{"Edge", name}, nil
		case "node", "nodes", "no":
			return drainTarget{"Node", name}, nil
		}
		return drainTarget{}, usageError(fmt.Errorf("%q: must be the name of an Edge or a Node, or edge/NAME or node/NAME", arg))
	}
	_, edgeErr := c.own.Resource(v1alpha1.EdgeResource).Get(ctx, arg, metav1.GetOptions{})
	_, nodeErr := c.kube.CoreV1().Nodes().Get(ctx, arg, metav1.GetOptions{})
	switch {
	case edgeErr == nil && nodeErr == nil:
		return drainTarget{}, usageError(fmt.Errorf("%q is the name of an Edge and of a Node: say edge/%s or node/%s", arg, arg, arg))
	case edgeErr == nil && apierrors.IsNotFound(nodeErr):
		return drainTarget{"Edge", arg}, nil
	case nodeErr == nil && apierrors.IsNotFound(edgeErr):
		return drainTarget{"Node", arg}, nil
	case apierrors.IsNotFound(edgeErr) && apierrors.IsNotFound(nodeErr):
		return drainTarget{}, &coded{fmt.Errorf("there is neither an Edge nor a Node %q", arg), exitNotFound}
	case edgeErr != nil && !apierrors.IsNotFound(edgeErr):
		return drainTarget{}, accessError(fmt.Sprintf("reading Edge %q; say node/%s if you mean a Node", arg, arg), edgeErr)
	}
	return drainTarget{}, accessError(fmt.Sprintf("reading Node %q; say edge/%s if you mean an Edge", arg, arg), nodeErr)
}

func (p *program) drain(cmd *cobra.Command, arg string, simulate, force bool) error {
	c, err := p.connect()
	if err != nil {
		return err
	}
	t, err := c.target(cmd.Context(), arg)
	if err != nil {
		return err
	}
	out, err := p.askPlan(cmd, c, t.request())
	switch {
	case err != nil && (simulate || !force || exitCode(err) == exitNotFound):
		return err
	case err != nil:
		fmt.Fprintln(cmd.ErrOrStderr(), "what it would do cannot be found out, going on since --force was given:", err)
		return c.setDrain(cmd, t, true)
	}
	without := out.Drain.Without()
	if simulate {
		return p.finish(cmd, out.Level(), out, func(pr *printer) { pr.drainPlan(*out.Drain, true) })
	}
	p.printer(cmd).drainPlan(*out.Drain, false)
	if len(without) > 0 && !force {
		return &coded{fmt.Errorf("nothing was done: %s would be left without any %s; --force drains all the same",
			count(len(without), "Service", "Services"), strings.ToLower(t.kind)), exitProblem}
	}
	return c.setDrain(cmd, t, true)
}

// setDrain writes it down.
func (c *cluster) setDrain(cmd *cobra.Command, t drainTarget, drained bool) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	if t.kind == "Edge" {
		patch := fmt.Sprintf(`{"spec":{"drain":%t}}`, drained)
		if _, err := c.own.Resource(v1alpha1.EdgeResource).Patch(ctx, t.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return accessError(fmt.Sprintf("setting spec.drain of Edge %q", t.name), err)
		}
		text := fmt.Sprintf("Edge %s: spec.drain is %t\n", t.name, drained)
		if drained {
			text += "it takes no new connections and lets the established ones end; other edges of its pools go on serving their addresses\n"
		}
		_, err := io.WriteString(out, text)
		return err
	}
	value := "null"
	done := "label " + v1.LabelNodeExcludeBalancers + " is removed: edges use the node again"
	if drained {
		value = `"true"`
		done = "label " + v1.LabelNodeExcludeBalancers + " is set: edges send it no new connections"
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, v1.LabelNodeExcludeBalancers, value)
	if _, err := c.kube.CoreV1().Nodes().Patch(ctx, t.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return accessError(fmt.Sprintf("labelling Node %q", t.name), err)
	}
	_, err := fmt.Fprintf(out, "Node %s: %s\n", t.name, done)
	return err
}

// completeTargets completes names of edges and nodes.
func (p *program) completeTargets(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := p.connect()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	if edges, err := listOwn[v1alpha1.Edge](cmd.Context(), c, v1alpha1.EdgeResource); err == nil {
		for _, e := range edges {
			names = append(names, e.Name+"\tEdge")
		}
	}
	if nodes, err := c.kube.CoreV1().Nodes().List(cmd.Context(), metav1.ListOptions{}); err == nil {
		for _, n := range nodes.Items {
			names = append(names, n.Name+"\tNode")
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func (p *printer) drainPlan(d report.DrainPlan, simulated bool) {
	verb := "draining"
	if simulated {
		verb = "nothing was changed; draining"
	}
	what := "edges that are reached and serve it, of the address that has the fewest"
	switch {
	case d.Kind == "Edge" && !d.HealthKnown:
		what = "edges that were reached when their Edge was last written, of which is not known what they serve"
	case d.Kind == "Node" && d.HealthKnown:
		what = "nodes that are up"
	case d.Kind == "Node":
		what = "nodes, of which is not known whether they are up"
	}
	already := ""
	if d.Already {
		already = ", which is drained already,"
	}
	switch without := len(d.Without()); {
	case len(d.Losses) == 0:
		p.line("%s %s %s%s takes nothing from any Service", verb, strings.ToLower(d.Kind), d.Name, already)
		return
	case without > 0:
		p.line("%s %s %s%s leaves %s %s", verb, strings.ToLower(d.Kind), d.Name, already, count(without, "Service", "Services"), p.paint(red, "without any"))
	default:
		p.line("%s %s %s%s leaves every Service with at least one", verb, strings.ToLower(d.Kind), d.Name, already)
	}
	t := newTable(-1, "SERVICE", strings.ToUpper(what[:5])+" BEFORE", "AFTER")
	for _, l := range d.Losses[:min(len(d.Losses), mostLosses)] {
		t.row(l.Namespace+"/"+l.Name, fmt.Sprint(l.Before), fmt.Sprint(l.After))
	}
	p.table(t)
	p.line("counted are %s", what)
	if more := len(d.Losses) - mostLosses; more > 0 {
		p.line("and %d more Services lose one; -o yaml with --simulate shows all", more)
	}
}
