package main

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/report"
)

func (p *program) statusCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show edges, pools, and Services that have a problem",
		Long: `Show the state of edges, pools and nodes, and the Services that have a problem, the
worst first. Services of all namespaces are looked at, or with --namespace those of
one. With --all or -o wide, Services without a problem are shown too.`,
		Example: `  kubectl eclusa status
  kubectl eclusa status -n shop -o wide`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.checkOutput(); err != nil {
				return err
			}
			s, err := p.status(cmd, all || p.output == "wide")
			if err != nil {
				return err
			}
			return p.finish(cmd, s.Level(), s, func(pr *printer) { pr.status(s) })
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "Show Services without a problem too.")
	return cmd
}

// status asks the leader, or looks at objects.
func (p *program) status(cmd *cobra.Command, all bool) (report.Status, error) {
	var s report.Status
	c, err := p.connect()
	if err != nil {
		return s, err
	}
	namespace := ""
	if cmd.Flags().Changed("namespace") {
		namespace = c.namespace
	}
	query := url.Values{"namespace": {namespace}, "all": {strconv.FormatBool(all)}}
	err = p.consult(cmd.Context(), c, http.MethodGet, report.StatusPath, query, nil, &s)
	if err == nil || answered(err) {
		return s, err
	}
	remark := p.remark(cmd, err)
	s, err = c.statusFromObjects(cmd.Context(), p.now(), namespace, all)
	s.Remark = remark
	return s, err
}

// status prints a table of everything.
func (p *printer) status(s report.Status) {
	p.line("%s   %s", p.headline(s), p.origin(s.Origin))
	p.line("")
	p.edges(s)
	p.line("")
	p.pools(s)
	p.line("")
	if len(s.Nodes) > 0 {
		p.line("%s may take traffic; not well:", count(s.NodeCount, "node", "nodes"))
		for _, n := range s.Nodes {
			for _, l := range p.findings(n.Findings, s.Time, "  ") {
				p.line("%s", l)
			}
		}
		p.line("")
	}
	p.services(s)
}

// headline sums everything up.
func (p *printer) headline(s report.Status) string {
	switch s.Level() {
	case report.Problem:
		return p.paint(red, "there are problems")
	case report.Notice:
		return p.paint(yellow, "traffic is served, with something to look at")
	default:
		return p.paint(green, "all is well")
	}
}

func (p *printer) edges(s report.Status) {
	if len(s.Edges) == 0 {
		p.line("there is no Edge: nothing can be served; create one: kubectl explain edge.spec")
		return
	}
	t := newTable(1, "EDGE", "STATE", "ENGINE", "VERSION", "CONFIG", "SERVING", "BACKENDS UP")
	for _, e := range s.Edges {
		revision := "current"
		switch {
		case e.Desired == 0:
			revision = "-"
		case e.Applied != e.Desired:
			revision = fmt.Sprintf("%d of %d", e.Applied, e.Desired)
		}
		t.row(e.Name, string(report.Worst(e.Findings)), orDash(printable(e.Engine)), orDash(printable(e.Version)), revision,
			fmt.Sprintf("%d/%d", e.Serving, e.LoadBalancers), fmt.Sprintf("%d/%d", e.Up, e.Backends))
		t.note(p.findings(e.Findings, s.Time, "  ")...)
	}
	p.table(t)
}

func (p *printer) pools(s report.Status) {
	if len(s.Pools) == 0 {
		p.line("there is no AddressPool: no Service gets an address; create one: kubectl explain addresspool.spec")
		return
	}
	head := []string{"POOL", "STATE", "USED", "QUARANTINED", "TOTAL", "AUTO", "ADDRESSES"}
	if p.wide {
		head = append(head, "EDGES")
	}
	t := newTable(1, head...)
	for _, o := range s.Pools {
		auto := "no"
		if o.AutoAssign {
			auto = "yes"
		}
		row := []string{
			o.Name, string(report.Worst(o.Findings)), strconv.FormatInt(o.Used, 10), strconv.FormatInt(o.Quarantined, 10), strconv.FormatInt(o.Total, 10),
			auto, printable(strings.Join(o.Addresses, ", ")),
		}
		if p.wide {
			row = append(row, orDash(strings.Join(o.Edges, ", ")))
		}
		t.row(row...)
		t.note(p.findings(o.Findings, s.Time, "  ")...)
	}
	p.table(t)
}

func (p *printer) services(s report.Status) {
	if len(s.Services) > 0 {
		head := []string{"SERVICE", "STATE", "ADDRESS", "PORTS", "EDGES", "NODES UP"}
		if p.wide {
			head = append(head, "POOL")
		}
		t := newTable(1, head...)
		for _, svc := range s.Services {
			row := []string{
				svc.Namespace + "/" + svc.Name, string(svc.Level()), orDash(strings.Join(svc.Addresses, ", ")), orDash(strings.Join(svc.Ports, ", ")),
				fmt.Sprintf("%d/%d", svc.Serving, svc.Edges), fmt.Sprintf("%d/%d", svc.Up, svc.Members),
			}
			if svc.Members < 0 { // not known
				row[4], row[5] = "-", "-"
			}
			if p.wide {
				row = append(row, orDash(strings.Join(svc.Pools, ", ")))
			}
			t.row(row...)
			t.note(p.findings(svc.Findings, s.Time, "  ")...)
		}
		p.table(t)
	}
	n := s.ServiceCounts
	total := n[report.OK] + n[report.Notice] + n[report.Problem]
	line := count(total, "Service", "Services")
	if total > 0 {
		line += fmt.Sprintf(": %d with a problem, %d with something to look at, %d fine", n[report.Problem], n[report.Notice], n[report.OK])
	}
	p.line("%s", line)
}
