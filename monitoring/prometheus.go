package monitoring

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

// Options say what a Prometheus does.
type Options struct {
	// Dir is an empty folder for its configuration and data. Required.
	Dir string
	// Rules are the files with alert rules.
	Rules []string
	// Targets are what is scraped, host:port by job.
	Targets map[string][]string
	// Extra are more keys of a job's scrape configuration, for those that want
	// TLS or a token.
	Extra map[string]map[string]any
	// Interval is how often it scrapes and evaluates; zero is 200 ms.
	Interval time.Duration
	// Hasten shortens the time for which something must be so before an alert
	// fires to this at most: tests cannot wait as long as people can sleep.
	Hasten time.Duration
	// Shorten replaces a part of an alert's expression, which must be there, by
	// another: a length of time that tests cannot wait for either.
	Shorten map[string]Replacement
	// Listen is where it is asked; empty is a free port of loopback, as seen from
	// this process.
	Listen string
	// Command makes the command that starts it, and Client reaches it, for one
	// that is to live in another network namespace; nil is this one.
	Command func(ctx context.Context, args ...string) *exec.Cmd
	Client  *http.Client
}

// Replacement is a text and what comes in its place.
type Replacement struct{ Old, New string }

// Prometheus is a running server.
type Prometheus struct {
	url    string
	client *http.Client
	cmd    *exec.Cmd
	log    *bytes.Buffer
	ended  chan struct{}
}

// Installed returns an error unless the programs prometheus and promtool are
// there, saying where they come from.
func Installed() error {
	for _, program := range []string{"prometheus", "promtool"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%w: it is in Debian's package prometheus, which `make tools` installs", err)
		}
	}
	return nil
}

// Start starts a Prometheus and waits until it answers. It lives until Stop, or
// until ctx ends.
func Start(ctx context.Context, o Options) (*Prometheus, error) {
	if err := Installed(); err != nil {
		return nil, err
	}
	if o.Interval == 0 {
		o.Interval = 200 * time.Millisecond
	}
	if o.Client == nil {
		o.Client = &http.Client{Timeout: 10 * time.Second}
	}
	if o.Command == nil {
		o.Command = func(ctx context.Context, args ...string) *exec.Cmd {
			return exec.CommandContext(ctx, args[0], args[1:]...)
		}
	}
	if o.Listen == "" {
		listen, err := freePort(ctx)
		if err != nil {
			return nil, err
		}
		o.Listen = listen
	}
	config, err := o.configure()
	if err != nil {
		return nil, err
	}
	p := &Prometheus{url: "http://" + o.Listen, client: o.Client, log: &bytes.Buffer{}, ended: make(chan struct{})}
	p.cmd = o.Command(ctx, "prometheus", "--config.file="+config, "--storage.tsdb.path="+filepath.Join(o.Dir, "data"),
		"--web.listen-address="+o.Listen, "--log.level=warn")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go p.reap()
	if err := p.await(ctx, time.Minute, func(ctx context.Context) error { return p.ask(ctx, "/-/ready", nil, nil) }); err != nil {
		p.Stop()
		return nil, fmt.Errorf("prometheus does not answer: %w\n%s", err, p.log)
	}
	return p, nil
}

func freePort(ctx context.Context) (string, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (p *Prometheus) reap() {
	_ = p.cmd.Wait() // how it ends is of no interest
	close(p.ended)
}

// Stop ends the server.
func (p *Prometheus) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// configure writes the configuration and copies the rules.
func (o Options) configure() (string, error) {
	type list []map[string]any
	var jobs list
	for job, targets := range o.Targets {
		config := map[string]any{"job_name": job, "static_configs": list{{"targets": targets}}}
		maps.Copy(config, o.Extra[job])
		jobs = append(jobs, config)
	}
	var rules []string
	for i, file := range o.Rules {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		if data, err = o.hastened(data); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
		name := fmt.Sprintf("rules-%d.yaml", i)
		if err := os.WriteFile(filepath.Join(o.Dir, name), data, 0o600); err != nil { //nolint:gosec // the names are this file's own
			return "", err
		}
		rules = append(rules, name)
	}
	data, err := yaml.Marshal(map[string]any{
		"global": map[string]any{
			"scrape_interval": o.Interval.String(), "scrape_timeout": o.Interval.String(), "evaluation_interval": o.Interval.String(),
		},
		"scrape_configs": jobs, "rule_files": rules,
	})
	if err != nil {
		return "", err
	}
	file := filepath.Join(o.Dir, "prometheus.yaml")
	return file, os.WriteFile(file, data, 0o600)
}

// hastened shortens every `for` of rules to at most what is given, and in
// expressions what is asked for.
func (o Options) hastened(data []byte) ([]byte, error) {
	if o.Hasten == 0 && len(o.Shorten) == 0 {
		return data, nil
	}
	var doc struct {
		Groups []struct {
			Name     string
			Interval string           `yaml:",omitempty"`
			Rules    []map[string]any `yaml:"rules"`
		}
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	for _, g := range doc.Groups {
		for _, r := range g.Rules {
			if _, ok := r["for"]; ok && o.Hasten != 0 {
				r["for"] = o.Hasten.String()
			}
			name, _ := r["alert"].(string)
			expr, _ := r["expr"].(string)
			with, ok := o.Shorten[name]
			if ok && !strings.Contains(expr, with.Old) {
				return nil, fmt.Errorf("alert %q: %q is not in its expression: %s", name, with.Old, expr)
			}
			if ok {
				r["expr"] = strings.ReplaceAll(expr, with.Old, with.New)
			}
		}
	}
	return yaml.Marshal(doc)
}

// Sample is one series of a result.
type Sample struct {
	Labels map[string]string
	Value  float64
}

// Query evaluates an expression now.
func (p *Prometheus) Query(ctx context.Context, expr string) ([]Sample, error) {
	var data struct {
		Result []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := p.ask(ctx, "/api/v1/query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	var out []Sample
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return nil, fmt.Errorf("query %s: value %q: %w", expr, r.Value[1], err)
		}
		out = append(out, Sample{r.Metric, v})
	}
	return out, nil
}

// Names returns the names of all metrics that it knows.
func (p *Prometheus) Names(ctx context.Context) (map[string]bool, error) {
	var names []string
	if err := p.ask(ctx, "/api/v1/label/__name__/values", nil, &names); err != nil {
		return nil, err
	}
	out := make(map[string]bool, len(names))
	for _, n := range names {
		out[n] = true
	}
	return out, nil
}

// Up waits until every target was scraped at least twice and is up.
func (p *Prometheus) Up(ctx context.Context, targets int) error {
	return p.await(ctx, 30*time.Second, func(ctx context.Context) error {
		up, err := p.Query(ctx, "up == 1 and count_over_time(up[1m]) > 1")
		if err == nil && len(up) != targets {
			err = fmt.Errorf("%d targets are up, want %d", len(up), targets)
		}
		return err
	})
}

// Alert is an alert that is pending or fires.
type Alert struct {
	Labels      map[string]string
	Annotations map[string]string
	State       string // pending or firing
}

// Alerts returns those that are pending or fire now.
func (p *Prometheus) Alerts(ctx context.Context) ([]Alert, error) {
	var data struct{ Alerts []Alert }
	err := p.ask(ctx, "/api/v1/alerts", nil, &data)
	return data.Alerts, err
}

// WaitAlert waits until an alert of the name fires, and returns it. With labels,
// it must have these. Its error says which alerts there are.
func (p *Prometheus) WaitAlert(ctx context.Context, within time.Duration, name string, labels map[string]string) (Alert, error) {
	var found Alert
	err := p.await(ctx, within, func(ctx context.Context) error {
		alerts, err := p.Alerts(ctx)
		if err != nil {
			return err
		}
		var others []string
		for _, a := range alerts {
			if a.State == "firing" && a.Labels["alertname"] == name && has(a.Labels, labels) {
				found = a
				return nil
			}
			others = append(others, fmt.Sprintf("%s %v", a.State, a.Labels))
		}
		return fmt.Errorf("alert %s %v does not fire; there are: %s", name, labels, strings.Join(others, ", "))
	})
	return found, err
}

func has(labels, want map[string]string) bool {
	for k, v := range want {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// RuleErrors returns what went wrong when rules were evaluated.
func (p *Prometheus) RuleErrors(ctx context.Context) error {
	var data struct {
		Groups []struct {
			Rules []struct{ Name, Health, LastError string }
		}
	}
	if err := p.ask(ctx, "/api/v1/rules", nil, &data); err != nil {
		return err
	}
	var errs []error
	for _, g := range data.Groups {
		for _, r := range g.Rules {
			if r.LastError != "" || r.Health == "err" {
				errs = append(errs, fmt.Errorf("rule %s: %s", r.Name, r.LastError))
			}
		}
	}
	return errors.Join(errs...)
}

// await tries until it succeeds.
func (p *Prometheus) await(ctx context.Context, within time.Duration, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return fmt.Errorf("prometheus has ended: %s", p.log)
		case <-ctx.Done():
			return err
		}
	}
}

// ask calls the API and decodes the data of its answer.
func (p *Prometheus) ask(ctx context.Context, path string, query url.Values, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.url+path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Error string
		Data  json.RawMessage
	}
	if into == nil {
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", path, resp.Status)
		}
		return nil
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%s: %s: %w", path, resp.Status, err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}
