package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Traffic is a steady stream of requests from a host, each on a connection of
// its own, to an address that the workload answers.
type Traffic struct {
	// From is where the requests come from.
	From *Host
	// URL is what is requested.
	URL string
	// Rate is the number of requests a second; 200 if zero. They are sent
	// on time whether or not earlier ones have been answered.
	Rate int
	// Timeout is how long an answer may take; five seconds if zero.
	Timeout time.Duration

	mu sync.Mutex
	r  Report
}

// Report is what has become of a stream of requests so far.
type Report struct {
	// Requests have ended; Failures of them without a good answer.
	Requests, Failures int
	// Slowest is the longest time that a good answer took.
	Slowest time.Duration
	// Errors are the first twenty failures.
	Errors []string
	// Nodes counts the answers of each node, and Last says when the newest
	// of them came.
	Nodes map[string]int
	Last  map[string]time.Time
}

// Run sends requests until ctx ends, waits for the answers to those under way,
// and returns the whole report.
func (t *Traffic) Run(ctx context.Context) Report {
	rate, timeout := t.Rate, t.Timeout
	if rate <= 0 {
		rate = 200
	}
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	client := t.From.HTTPClient()
	client.Timeout = timeout
	// Requests under way when ctx ends are still answered.
	background := context.WithoutCancel(ctx)
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	var wait sync.WaitGroup
	for sent, start := 0, time.Now(); ; {
		select {
		case <-ctx.Done():
			wait.Wait()
			return t.Report()
		case <-tick.C:
		}
		// A busy machine loses ticks, but no requests.
		for due := int(time.Since(start).Seconds() * float64(rate)); sent < due; sent++ {
			wait.Go(func() { t.one(background, client) })
		}
	}
}

// Report is how it stands now.
func (t *Traffic) Report() Report {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.r
	r.Errors = slices.Clone(r.Errors)
	r.Nodes, r.Last = maps.Clone(r.Nodes), maps.Clone(r.Last)
	return r
}

func (t *Traffic) one(ctx context.Context, client *http.Client) {
	start := time.Now()
	node, err := ask(ctx, client, t.URL)
	took := time.Since(start)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.r.Requests++
	if err != nil {
		t.r.Failures++
		if len(t.r.Errors) < 20 {
			t.r.Errors = append(t.r.Errors, err.Error())
		}
		return
	}
	if t.r.Nodes == nil {
		t.r.Nodes, t.r.Last = map[string]int{}, map[string]time.Time{}
	}
	t.r.Nodes[node]++
	t.r.Last[node] = start.Add(took)
	t.r.Slowest = max(t.r.Slowest, took)
}

// ask makes a request and returns the name of the node that answered.
func ask(ctx context.Context, client *http.Client, url string) (node string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("answer %s", resp.Status)
	}
	return answeringNode(string(body))
}

// answeringNode reads the node from the workload's greeting.
func answeringNode(body string) (string, error) {
	_, rest, ok := strings.Cut(body, " on ")
	node, _, ok2 := strings.Cut(rest, ", you are ")
	if !ok || !ok2 {
		return "", fmt.Errorf("answer %q: not the workload's", body)
	}
	return node, nil
}
