package lab

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClusterName is the name by which edges know the lab's cluster.
const ClusterName = "lab"

// Edge is a host that runs eclusa-edge.
type Edge struct {
	*Host
	// Process is the program; nil on a machine, where systemd runs it as
	// eclusa-edge.service.
	Process *Process
}

// API is where the edge's API listens, Management where its health, metrics and
// status page are, for requests from the edge's own host.
func (e *Edge) API() netip.AddrPort { return netip.AddrPortFrom(e.Addr4, 7443) }

// Management is where the edge tells how it is: /healthz, /readyz, /metrics. It
// only answers requests from its own host.
func (e *Edge) Management() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 9980)
}

// ConfigPath is the edge's configuration file, on the edge. Changed, it counts from
// the next start of the process on.
func (e *Edge) ConfigPath() string {
	if e.machine {
		return packagedConfig
	}
	return e.givenConfig()
}

// givenConfig is the configuration file as the lab has written it.
func (e *Edge) givenConfig() string { return e.lab.path("eclusa", e.Name+".yaml") }

// StateDir is where the edge keeps its state, on the edge.
func (e *Edge) StateDir() string {
	if e.machine {
		return packagedStateDir
	}
	return e.lab.path("eclusa", e.Name+".state")
}

// Certificate is the file of the edge's certificate on the edge, without its ending.
func (e *Edge) Certificate() string {
	if e.machine {
		return packagedCertificate
	}
	return filepath.Join(e.lab.EdgePKI(), e.Name)
}

// CA is the file of the CA that the edge believes, on the edge.
func (e *Edge) CA() string {
	if e.machine {
		return packagedCA
	}
	return filepath.Join(e.lab.EdgePKI(), "ca.crt")
}

// Ready waits until the edge says that it is.
func (e *Edge) Ready(ctx context.Context) error {
	url := fmt.Sprintf("http://%s/readyz", e.Management())
	client := e.HTTPClient()
	client.Timeout = 2 * time.Second
	err := until(ctx, 20*time.Second, func(ctx context.Context) error {
		if e.Process != nil && !e.Process.Running() {
			return fmt.Errorf("%q has ended:\n%s", e.Process.Name, e.Process.tail())
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz answers %s", resp.Status)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("edge %q: %w", e.Name, err)
	}
	return nil
}

// EdgePKI is the directory with the certificates that eclusa-edge pki has made:
// the CA, one for each edge, and the cluster's.
func (l *Lab) EdgePKI() string { return l.path("eclusa", "pki") }

// edgeTemplate is an edge's configuration.
//
//go:embed eclusa/edge.yaml.tmpl
var edgeTemplate string

// edgeFacts are what the templates need to know.
type edgeFacts struct {
	Lab          *Lab
	Edge         *Edge
	Cluster      string
	Pool4, Pool6 string
	Secret       string
	Repository   string
	Tag          string
	Namespace    string
	Scraper      string
	LeaseFlags   string
}

// startEclusa makes the certificates, starts the edges and installs the chart.
func (l *Lab) startEclusa(ctx context.Context) error {
	if err := l.makeEdgePKI(ctx); err != nil {
		return err
	}
	g, some := errgroup.WithContext(ctx)
	g.Go(func() error { return l.startEdges(some) })
	g.Go(func() error { return l.installChart(some) })
	if err := g.Wait(); err != nil {
		return err
	}
	if !l.Manager.inPods() {
		if err := l.Manager.startProcess(ctx); err != nil {
			return err
		}
	}
	return l.edgesReady(ctx)
}

func (l *Lab) makeEdgePKI(ctx context.Context) error {
	if err := os.MkdirAll(l.EdgePKI(), 0o700); err != nil {
		return err
	}
	if _, err := l.pkiCommand(ctx, "init"); err != nil {
		return err
	}
	for _, e := range l.Edges {
		if err := l.issueEdge(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// issueEdge makes the edge's certificate.
func (l *Lab) issueEdge(ctx context.Context, e *Edge) error {
	_, err := l.pkiCommand(ctx, "edge", "--name", e.Name, "--host", e.Addr4.String(), "--host", e.Addr6.String())
	return err
}

// pkiCommand makes certificates the way a user does, and returns what the command
// prints.
func (l *Lab) pkiCommand(ctx context.Context, args ...string) ([]byte, error) {
	args = append([]string{"pki", args[0], "--dir", l.EdgePKI()}, args[1:]...)
	var complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, l.bin(edgeProgram), args...)
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", edgeProgram, args, err, bytes.TrimSpace(complaint.Bytes()))
	}
	return out, nil
}

func (l *Lab) startEdges(ctx context.Context) error {
	start := l.runEdges
	if l.Options.EdgePackages {
		start = l.installEdges
	}
	if err := start(ctx, l.Edges...); err != nil {
		return err
	}
	l.say("%s ready", count(len(l.Edges), "edge is", "edges are"))
	return nil
}

// runEdges runs the edges as programs.
func (l *Lab) runEdges(ctx context.Context, edges ...*Edge) error {
	var g errgroup.Group
	for _, e := range edges {
		if err := l.writeTemplate(e.givenConfig(), edgeTemplate, e); err != nil {
			return err
		}
		e.Process = l.process(edgeRole, "eclusa-"+e.Name, e.Host, l.bin(edgeProgram), "--config", e.ConfigPath())
		if err := e.Process.Start(); err != nil {
			return err
		}
		g.Go(func() error { return e.Ready(ctx) })
	}
	return g.Wait()
}

// writeTemplate writes a configuration file of eclusa.
func (l *Lab) writeTemplate(file, text string, e *Edge) error {
	data, err := l.fill(filepath.Base(file), text, e)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o600)
}

func (l *Lab) fill(name, text string, e *Edge) ([]byte, error) {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	facts := edgeFacts{
		Lab: l, Edge: e, Cluster: ClusterName, Pool4: PoolRange4, Pool6: PoolRange6,
		Secret: clientSecret, Repository: managerRepository, Tag: managerTag, Namespace: ReleaseNamespace, Scraper: Scraper,
		LeaseFlags: strings.Join(l.Options.leaseFlags(), ", "),
	}
	if err := t.Execute(&b, facts); err != nil {
		return nil, fmt.Errorf("file %q: %w", name, err)
	}
	return b.Bytes(), nil
}
