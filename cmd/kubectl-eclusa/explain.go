package main

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/eclusa-lb/eclusa/report"
)

func (p *program) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain SERVICE",
		Short: "Show the way of a connection to a Service, and what is in its way",
		Long: `Show the way of a connection from the client over address, edge and listener to
node ports and their health; what is wrong, since when, and what to do; and all
timeouts and limits in force. SERVICE is a name, or NAMESPACE/NAME.`,
		Example: `  kubectl eclusa explain web
  kubectl eclusa explain shop/web -o yaml`,
		Args: exactly("SERVICE"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return p.serviceNames(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.checkOutput(); err != nil {
				return err
			}
			e, err := p.explain(cmd, args[0])
			if err != nil {
				return err
			}
			return p.finish(cmd, report.Worst(e.Findings), e, func(pr *printer) { pr.explain(e) })
		},
	}
}

// explain asks the leader, or looks at objects.
func (p *program) explain(cmd *cobra.Command, service string) (report.Explanation, error) {
	var e report.Explanation
	c, err := p.connect()
	if err != nil {
		return e, err
	}
	namespace, name := c.namespace, strings.TrimPrefix(strings.TrimPrefix(service, "service/"), "svc/")
	if ns, n, both := strings.Cut(name, "/"); both {
		namespace, name = ns, n
	}
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return e, usageError(fmt.Errorf("SERVICE: %q: must be a name, or NAMESPACE/NAME", service))
	}
	query := url.Values{"namespace": {namespace}, "name": {name}}
	err = p.consult(cmd.Context(), c, http.MethodGet, report.ExplainPath, query, nil, &e)
	if err == nil || answered(err) {
		return e, err
	}
	remark := p.remark(cmd, err)
	e, err = c.explainFromObjects(cmd.Context(), p.now(), namespace, name)
	e.Remark = remark
	return e, err
}

func (p *printer) explain(e report.Explanation) {
	problems := 0
	for _, f := range e.Findings {
		if f.Level == report.Problem {
			problems++
		}
	}
	sum := p.paint(green, "nothing is wrong")
	switch {
	case problems > 0:
		sum = p.paint(red, count(problems, "problem", "problems"))
	case len(e.Findings) > 0:
		sum = p.paint(yellow, "served, with something to look at")
	}
	p.line("Service %s/%s: %s   %s", e.Namespace, e.Name, sum, p.origin(e.Origin))
	class := "no class"
	if e.Class != "" {
		class = "class " + printable(e.Class)
	}
	p.line("%s, externalTrafficPolicy %s", class, e.Policy)
	p.line("")
	for _, l := range p.findings(e.Findings, e.Time, "") {
		p.line("%s", l)
	}
	if len(e.Findings) > 0 {
		p.line("")
	}
	p.path(e)
	if ends := e.Endpoints; ends != nil {
		where := "none is ready"
		if ends.Ready {
			where = "ready on " + orDash(strings.Join(ends.Nodes, ", "))
		}
		p.line("endpoints: %s", where)
	}
	if len(e.Limits) > 0 {
		p.line("")
		t := newTable(-1, "LIMIT", "VALUE", "FROM")
		for _, l := range e.Limits {
			t.row(l.Name, l.Value, l.From)
		}
		p.table(t)
	}
	if p.wide || e.Leader == "" {
		p.conditions(e)
	}
}

// path draws the way of a connection: what is one level deeper hangs on the last
// of the level above.
func (p *printer) path(e report.Explanation) {
	p.line("client")
	indent := ""
	level := func(lines []string) {
		for i, l := range lines {
			branch := "├─ "
			if i == len(lines)-1 {
				branch = "└─ "
			}
			p.line("%s%s%s", indent, branch, l)
		}
		if len(lines) > 0 {
			indent += "   "
		}
	}
	var addresses, edges []string
	for _, a := range e.Addresses {
		text := a.Address
		if a.Pool != "" {
			text += ", pool " + a.Pool
		}
		if !a.Published {
			text += ", not in the Service's status"
		}
		addresses = append(addresses, text)
	}
	if len(addresses) == 0 {
		addresses = []string{p.paint(red, "no address")}
	}
	level(addresses)
	for _, edge := range e.Edges {
		edges = append(edges, fmt.Sprintf("edge %s: %s", edge.Name, p.standing(edge)))
	}
	level(edges)
	for i, l := range e.Listeners {
		text := fmt.Sprintf("%d/%s", l.Port, l.Protocol)
		if l.Name != "" {
			text += " (" + l.Name + ")"
		}
		branch, below := "├─ ", "│  "
		if i == len(e.Listeners)-1 {
			branch, below = "└─ ", "   "
		}
		p.line("%s%s%s → %s", indent, branch, text, target(l))
		outer := indent
		indent += below
		members := make([]string, len(e.Members))
		for j, m := range e.Members {
			members[j] = p.member(m, l)
		}
		level(members)
		indent = outer
	}
}

func (p *printer) standing(e report.EdgeView) string {
	switch {
	case e.Serving && e.Reached:
		return p.paint(green, "serves it")
	case e.Serving:
		return p.paint(yellow, "served it when it was last reached, and goes on")
	case !e.Reached:
		return p.paint(yellow, "is not reached")
	case !e.Confirmed:
		return p.paint(yellow, "has not confirmed the newest version yet")
	}
	return p.paint(red, "does not serve it")
}

// target says where a listener sends connections.
func target(l report.Listener) string {
	if l.Direct {
		return "the same port of the same address, on nodes"
	}
	text := "node port " + strconv.Itoa(int(l.NodePort))
	if l.NodePort == 0 {
		text = "a node port that the API server allocates"
	}
	if l.Proxy != "" {
		text += ", PROXY protocol " + l.Proxy
	}
	return text
}

// member says where a node takes connections and how it is.
func (p *printer) member(m report.Member, l report.Listener) string {
	where := "no address"
	if len(m.Addresses) > 0 {
		where = net.JoinHostPort(m.Addresses[0], strconv.Itoa(int(l.NodePort)))
		if l.Direct {
			where = m.Addresses[0]
		}
	}
	text := m.Node + " " + where
	if m.Weight > 0 {
		text += fmt.Sprintf(", weight %d", m.Weight)
	}
	if m.Draining {
		text += ", " + p.paint(yellow, "about to go")
	}
	byState := map[string][]string{}
	errorOf := map[string]string{}
	for edge, h := range m.Health {
		byState[h.State] = append(byState[h.State], edge)
		if errorOf[h.State] == "" {
			errorOf[h.State] = h.Error
		}
	}
	states := make([]string, 0, len(byState))
	for state, edges := range byState {
		slices.Sort(edges)
		s := p.paint(colourOf(state), state)
		if len(byState) > 1 {
			s += " for " + strings.Join(edges, ", ")
		}
		if errorOf[state] != "" {
			s += ": " + printable(errorOf[state])
		}
		states = append(states, s)
	}
	slices.Sort(states)
	if len(states) == 0 {
		return text
	}
	return text + "  " + strings.Join(states, "; ")
}

func (p *printer) conditions(e report.Explanation) {
	if len(e.Conditions) == 0 {
		return
	}
	p.line("")
	t := newTable(-1, "CONDITION", "STATUS", "REASON", "MESSAGE")
	for _, c := range e.Conditions {
		t.row(printable(c.Type), printable(c.Status), printable(c.Reason), printable(c.Message)+" ("+ago(c.Since, e.Time)+")")
	}
	p.table(t)
}
