package page

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	rowsPerPage  = 50
	nodesPerPage = 25
	eventsOnPage = 40
	maxSearch    = 200 // bytes
	// problemsOnly is the value of the parameter state that leaves out what is
	// well.
	problemsOnly = "problems"
	// The boxes of plots, in units of their own.
	sparkW, sparkH = 120, 28
	plotW, plotH   = 320, 72
)

// frame is what every page has around it.
type frame struct {
	Status
	Title string
	// Verdict is the state of the whole edge, in one word and in a sentence.
	Verdict State
	Summary string
	// Session says that there is one to end.
	Session bool
}

func (p *Page) frame(s *snapshot, r *http.Request) frame {
	f := frame{Status: s.Status, Verdict: OK, Summary: "Everything is served", Session: p.guard.hasSession(r)}
	if n := len(s.Problems); n > 0 {
		f.Verdict = s.Problems[0].State
		f.Summary = fmt.Sprintf("%d problems", n)
		if n == 1 {
			f.Summary = "1 problem"
		}
	} else if s.Totals.LoadBalancers.Total == 0 {
		f.Verdict, f.Summary = Pending, "No load balancer yet"
	}
	f.Title = s.Edge.Name + " · eclusa edge"
	if n := len(s.Problems); n > 0 {
		f.Title = fmt.Sprintf("(%d) %s", n, f.Title)
	}
	return f
}

// query is what somebody wants to see.
type query struct {
	Search       string
	ProblemsOnly bool
	Page, Nodes  int // from 1
}

func readQuery(v url.Values) query {
	q := query{Search: strings.TrimSpace(v.Get("q")), ProblemsOnly: v.Get("state") == problemsOnly, Page: 1, Nodes: 1}
	q.Search = strings.ToValidUTF8(q.Search[:min(len(q.Search), maxSearch)], "")
	if n, err := strconv.Atoi(v.Get("page")); err == nil {
		q.Page = n
	}
	if n, err := strconv.Atoi(v.Get("nodes")); err == nil {
		q.Nodes = n
	}
	return q
}

// link returns the address of a page that shows the same but for a change.
func (q query) link(change func(*query)) string {
	change(&q)
	v := url.Values{}
	if q.Search != "" {
		v.Set("q", q.Search)
	}
	if q.ProblemsOnly {
		v.Set("state", problemsOnly)
	}
	if q.Page > 1 {
		v.Set("page", strconv.Itoa(q.Page))
	}
	if q.Nodes > 1 {
		v.Set("nodes", strconv.Itoa(q.Nodes))
	}
	return "./?" + v.Encode()
}

// pager leads through the pages of a list.
type pager struct {
	What             string
	First, Last, All int
	Page, Pages      int
	Previous, Next   string // links, empty at the ends
}

func newPager(what string, page, all, per int, link func(int) string) pager {
	pages := max(1, (all+per-1)/per)
	page = max(1, min(page, pages))
	p := pager{What: what, Page: page, Pages: pages, All: all, First: min(all, (page-1)*per+1), Last: min(all, page*per)}
	if page > 1 {
		p.Previous = link(page - 1)
	}
	if page < pages {
		p.Next = link(page + 1)
	}
	return p
}

// from and to are the places of a page's first entry and the one after its last.
func (p pager) from() int { return max(0, p.First-1) }

func (p pager) to() int { return p.Last }

type overviewPage struct {
	frame
	Query            query
	AllLink, BadLink string
	Bad              int // load balancers that are not OK
	Tiles            []tile
	Problems         []problemRow
	Rows             []loadBalancerRow
	Pager            pager
	NodeRows         []nodeRow
	NodePager        pager
	ClusterRows      []clusterRow
	EventRows        []eventRow
}

// tile is a figure with its plot.
type tile struct {
	Name, Value, Note string
	Plot              plot
}

type loadBalancerRow struct {
	LoadBalancer
	ID, Link string
	Plot     plot
}

type problemRow struct {
	Problem
	ID, Link, When, Clock string
}

type nodeRow struct {
	Node
	ID, Health, When, Clock, Failure string
}

type clusterRow struct {
	Cluster
	When, Clock string
}

type eventRow struct {
	Event
	Clock string
}

func (p *Page) overview(w http.ResponseWriter, r *http.Request) {
	s := p.snapshot()
	q := readQuery(r.URL.Query())
	o := overviewPage{frame: p.frame(s, r), Query: q, Tiles: s.tiles()}
	states := s.Totals.LoadBalancers
	o.Bad = states.Total - states.OK
	o.AllLink = q.link(func(q *query) { q.ProblemsOnly, q.Page = false, 1 })
	o.BadLink = q.link(func(q *query) { q.ProblemsOnly, q.Page = true, 1 })
	matching := s.matching(q)
	o.Pager = newPager("load balancers", q.Page, len(matching), rowsPerPage, func(n int) string { return q.link(func(q *query) { q.Page = n }) })
	for _, l := range matching[o.Pager.from():o.Pager.to()] {
		o.Rows = append(o.Rows, loadBalancerRow{
			LoadBalancer: l, ID: elementID("lb", string(l.Cluster), string(l.UID)), Link: detailLink(l.Cluster, l.UID),
			Plot: draw(p.history.of(lb.Owner{Cluster: l.Cluster, UID: l.UID}, s.At), accepted, s.At, sparkW, sparkH),
		})
	}
	o.NodePager = newPager("nodes", q.Nodes, len(s.Nodes), nodesPerPage, func(n int) string { return q.link(func(q *query) { q.Nodes = n }) })
	for _, n := range s.Nodes[o.NodePager.from():o.NodePager.to()] {
		o.NodeRows = append(o.NodeRows, newNodeRow(s, n))
	}
	for i, problem := range s.Problems {
		o.Problems = append(o.Problems, newProblemRow(s, i, problem))
	}
	for _, c := range s.Clusters {
		row := clusterRow{Cluster: c}
		if !c.AppliedAt.IsZero() {
			row.When, row.Clock = ago(s.At, c.AppliedAt), clock(s.At, c.AppliedAt)
		}
		o.ClusterRows = append(o.ClusterRows, row)
	}
	for _, e := range s.Events[:min(eventsOnPage, len(s.Events))] {
		o.EventRows = append(o.EventRows, eventRow{Event: e, Clock: clock(s.At, e.At)})
	}
	render(w, r, http.StatusOK, "overview", o)
}

func (s *snapshot) tiles() []tile {
	t := s.Totals
	draw := func(q quantity) plot { return draw(s.total, q, s.At, plotW, plotH) }
	note := "none refused"
	if t.RefusedPerSecond > 0 {
		note = perSecond(t.RefusedPerSecond) + " refused"
	}
	return []tile{
		{Name: "Open connections", Value: count(float64(t.ActiveConnections)), Plot: draw(active)},
		{Name: "New connections", Value: perSecond(t.ConnectionsPerSecond), Note: note, Plot: draw(accepted)},
		{Name: "From clients", Value: bytesPerSecond(t.BytesInPerSecond), Plot: draw(bytesIn)},
		{Name: "To clients", Value: bytesPerSecond(t.BytesOutPerSecond), Plot: draw(bytesOut)},
	}
}

// matching returns the load balancers that a query asks for.
func (s *snapshot) matching(q query) []LoadBalancer {
	if q.Search == "" && !q.ProblemsOnly {
		return s.LoadBalancers
	}
	var out []LoadBalancer
	for _, l := range s.LoadBalancers {
		if l.wanted(q.ProblemsOnly) && l.matches(q.Search) {
			out = append(out, l)
		}
	}
	return out
}

func newProblemRow(s *snapshot, i int, p Problem) problemRow {
	row := problemRow{Problem: p, ID: elementID("problem", p.Kind, string(p.Cluster), p.Name, strconv.Itoa(i))}
	if p.UID != "" {
		row.Link = detailLink(p.Cluster, p.UID)
	}
	if !p.Since.IsZero() {
		row.When, row.Clock = ago(s.At, p.Since), clock(s.At, p.Since)
	}
	return row
}

func newNodeRow(s *snapshot, n Node) nodeRow {
	row := nodeRow{Node: n, ID: elementID("node", string(n.Cluster), string(n.Name)), Health: notChecked}
	if len(n.Checks) > 0 {
		first := n.Checks[0]
		row.Health = healthText(first.Health)
		if n.State == Degraded {
			row.Health = fmt.Sprintf("down in %d of %d checks", n.down(), len(n.Checks))
		}
		if row.State != OK {
			row.Failure = failureText(first)
		}
		if first.Dead {
			row.Failure += "; its node ports do not answer either"
		}
		if !first.Since.IsZero() {
			row.When, row.Clock = ago(s.At, first.Since), clock(s.At, first.Since)
		}
	}
	if n.Draining {
		row.Health = "draining, as the cluster wants"
		row.Failure = ""
	}
	return row
}

// notChecked is what is told of nodes that nobody asks.
const notChecked = "not checked"

func healthText(s healthcheck.State) string {
	if s == healthcheck.Unchecked {
		return notChecked
	}
	return s.String()
}

func detailLink(cluster lb.Cluster, uid lb.UID) string {
	return "load-balancer?" + url.Values{"cluster": {string(cluster)}, "uid": {string(uid)}}.Encode()
}

// elementID names an element, the same each time, whatever the parts are made of.
func elementID(kind string, parts ...string) string {
	return kind + "-" + url.PathEscape(strings.Join(parts, "/"))
}

// json answers with Status. The parameters q and state narrow the load
// balancers as on the page, offset and limit cut them.
func (p *Page) json(w http.ResponseWriter, r *http.Request) {
	s := p.snapshot()
	v := r.URL.Query()
	out := s.Status
	matching := s.matching(readQuery(v))
	out.Matched = len(matching)
	offset, err := number(v, "offset", 0)
	limit, err2 := number(v, "limit", len(matching))
	if err != nil || err2 != nil {
		http.Error(w, "offset and limit must be whole numbers that are not negative", http.StatusBadRequest)
		return
	}
	offset = min(offset, len(matching))
	out.LoadBalancers = matching[offset : offset+min(limit, len(matching)-offset)]
	if out.LoadBalancers == nil {
		out.LoadBalancers = []LoadBalancer{}
	}
	body, err := json.Marshal(out)
	if err != nil {
		http.Error(w, "the status cannot be encoded: "+err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, r, http.StatusOK, "application/json", append(body, '\n'))
}

// number reads a parameter that is not negative.
func number(v url.Values, name string, otherwise int) (int, error) {
	if !v.Has(name) {
		return otherwise, nil
	}
	n, err := strconv.ParseUint(v.Get(name), 10, 31)
	return int(n), err
}
