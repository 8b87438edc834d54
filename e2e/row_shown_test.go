package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/edge/page"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// edgeStatus is what the edge's status page tells, narrowed to a Service.
func (c *cluster) edgeStatus(ctx context.Context, service string) (page.Status, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var status page.Status
	at := fmt.Sprintf("http://%s/status.json?q=%s", c.edge.Management(), url.QueryEscape(service))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return status, err
	}
	resp, err := c.edge.HTTPClient().Do(req)
	if err != nil {
		return status, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return status, fmt.Errorf("%s answers %s", at, resp.Status)
	}
	return status, json.NewDecoder(resp.Body).Decode(&status)
}

// shown waits until the edge shows the Service, and returns what it shows.
func (o *served) shown(t *testing.T) page.LoadBalancer {
	t.Helper()
	l, _ := o.shownWithNodes(t)
	return l
}

func (o *served) shownWithNodes(t *testing.T) (page.LoadBalancer, []page.Node) {
	t.Helper()
	var found page.LoadBalancer
	var nodes []page.Node
	name := o.ns + "/" + o.name
	eventually(t, 15*time.Second, func() error {
		status, err := o.edgeStatus(t.Context(), name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(status.LoadBalancers, func(l page.LoadBalancer) bool { return l.Name == name })
		if i < 0 {
			return fmt.Errorf("the edge does not show %q", name)
		}
		found, nodes = status.LoadBalancers[i], status.Nodes
		return nil
	})
	return found, nodes
}

// members returns an error unless so many nodes take the Service's new connections.
func (o *served) members(t *testing.T, want int) error {
	t.Helper()
	if m := o.shown(t).Members; m.Up != want {
		return fmt.Errorf("service %q has members %+v on the edge, want %d up", o.name, m, want)
	}
	return nil
}

// untilAll waits until all nodes take the Service's new connections, and kube-proxy
// of each serves them.
func (o *served) untilAll(t *testing.T) {
	t.Helper()
	eventually(t, 15*time.Second, func() error { return o.members(t, len(o.Nodes)) })
}

// probed are the nodes on which the edge runs the Service's health check, with
// what it found there.
func (o *served) probed(t *testing.T) (lb.CheckID, map[string]healthcheck.State) {
	t.Helper()
	l, nodes := o.shownWithNodes(t)
	found := map[string]healthcheck.State{}
	for _, n := range nodes {
		for _, c := range n.Checks {
			if c.ID == l.Check {
				found[string(n.Name)] = c.Health
			}
		}
	}
	return l.Check, found
}

// explained wants every text in what kubectl eclusa explain prints.
func (o *served) explained(t *testing.T, texts ...string) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		stdout, stderr, _ := o.plugin.run(t, "explain", o.ns+"/"+o.name)
		// Columns are as wide as what stands in them.
		flat := strings.Join(strings.Fields(stdout), " ")
		for _, text := range texts {
			if !strings.Contains(flat, text) {
				return fmt.Errorf("explain: want %q in:\n%s%s", text, stdout, stderr)
			}
		}
		return nil
	})
}
