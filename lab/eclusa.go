package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"

	"golang.org/x/sync/errgroup"
)

// ClusterName is the name by which edges know the lab's cluster.
const ClusterName = "lab"

// Edge is a host that runs eclusa-edge.
type Edge struct {
	*Host
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

// ConfigPath is the edge's configuration file. Changed, it counts from the next
// start of the process on.
func (e *Edge) ConfigPath() string { return e.lab.path("eclusa", e.Name+".yaml") }

// StateDir is where the edge keeps its state.
func (e *Edge) StateDir() string { return e.lab.path("eclusa", e.Name+".state") }

// Ready waits until the edge says that it is.
func (e *Edge) Ready(ctx context.Context) error {
	url := fmt.Sprintf("http://%s/readyz", e.Management())
	client := e.HTTPClient()
	client.Timeout = 2 * time.Second
	err := until(ctx, 20*time.Second, func(ctx context.Context) error {
		if !e.Process.Running() {
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

// ccmTemplate is the cloud controller managers' configuration.
//
//go:embed eclusa/cloud.yaml.tmpl
var ccmTemplate string

// objectsTemplate are the AddressPool and the Edges.
//
//go:embed eclusa/objects.yaml.tmpl
var objectsTemplate string

// edgeFacts are what the templates need to know.
type edgeFacts struct {
	Lab          *Lab
	Edge         *Edge
	Cluster      string
	Pool4, Pool6 string
}

// startEclusa makes the certificates, starts the edges and one cloud controller
// manager, and gives the cluster its AddressPool and Edges.
func (l *Lab) startEclusa(ctx context.Context) error {
	if err := l.makeEdgePKI(ctx); err != nil {
		return err
	}
	if err := l.startEdges(ctx); err != nil {
		return err
	}
	if err := l.installEclusa(ctx); err != nil {
		return err
	}
	file := l.path("eclusa", "cloud.yaml")
	if err := l.writeTemplate(file, ccmTemplate, nil); err != nil {
		return err
	}
	if err := l.StartCCM(1); err != nil {
		return err
	}
	return l.edgesReady(ctx)
}

func (l *Lab) makeEdgePKI(ctx context.Context) error {
	if err := os.MkdirAll(l.EdgePKI(), 0o700); err != nil {
		return err
	}
	if err := l.pkiCommand(ctx, "init"); err != nil {
		return err
	}
	for _, e := range l.Edges {
		if err := l.pkiCommand(ctx, "edge", "--name", e.Name, "--host", e.Addr4.String(), "--host", e.Addr6.String()); err != nil {
			return err
		}
	}
	return l.pkiCommand(ctx, "cluster", "--name", ClusterName)
}

// pkiCommand makes certificates the way a user does.
func (l *Lab) pkiCommand(ctx context.Context, args ...string) error {
	args = append([]string{"pki", args[0], "--dir", l.EdgePKI()}, args[1:]...)
	out, err := exec.CommandContext(ctx, l.bin(edgeProgram), args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", edgeProgram, args, err, bytes.TrimSpace(out))
	}
	return nil
}

func (l *Lab) startEdges(ctx context.Context) error {
	var g errgroup.Group
	for _, e := range l.Edges {
		if err := l.writeTemplate(e.ConfigPath(), edgeTemplate, e); err != nil {
			return err
		}
		e.Process = l.process(edgeRole, "eclusa-"+e.Name, e.Host, l.bin(edgeProgram), "--config", e.ConfigPath())
		if err := e.Process.Start(); err != nil {
			return err
		}
		g.Go(func() error { return e.Ready(ctx) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	l.say("%s ready", count(len(l.Edges), "edge is", "edges are"))
	return nil
}

// installEclusa gives the cluster the custom resources of the chart, the roles
// of the cloud controller manager, and the objects.
func (l *Lab) installEclusa(ctx context.Context) error {
	src, err := source()
	if err != nil {
		return err
	}
	crds, err := filepath.Glob(filepath.Join(src, "charts", "eclusa", "crds", "*.yaml"))
	if err != nil {
		return err
	}
	if len(crds) == 0 {
		return errors.New("the chart has no custom resource definitions in charts/eclusa/crds")
	}
	for _, file := range crds {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := l.Apply(ctx, data); err != nil {
			return err
		}
	}
	if err := l.Apply(ctx, ccmRBAC); err != nil {
		return err
	}
	objects, err := l.fill("objects.yaml", objectsTemplate, nil)
	if err != nil {
		return err
	}
	return l.Apply(ctx, objects)
}

// StartCCM starts cloud controller managers until n of them run. The new ones
// are appended to CCMs; those that have ended are started again.
func (l *Lab) StartCCM(n int) error {
	config := l.kubeconfig(ccmProgram)
	for len(l.CCMs) < n {
		i := len(l.CCMs)
		p := l.process(ccmRole, fmt.Sprintf("ccm-%d", i+1), l.ControlPlane.Host, l.bin(ccmProgram),
			"--cloud-provider=eclusa",
			"--cloud-config="+l.path("eclusa", "cloud.yaml"),
			"--kubeconfig="+config,
			"--authentication-kubeconfig="+config,
			"--authorization-kubeconfig="+config,
			"--bind-address=127.0.0.1",
			fmt.Sprintf("--secure-port=%d", 10258+2*i),
			"--cert-dir="+l.path("eclusa", fmt.Sprintf("ccm-%d", i+1)))
		l.CCMs = append(l.CCMs, p)
	}
	for _, p := range l.CCMs[:n] {
		if err := p.Start(); err != nil {
			return err
		}
	}
	return nil
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
	facts := edgeFacts{Lab: l, Edge: e, Cluster: ClusterName, Pool4: PoolRange4, Pool6: PoolRange6}
	if err := t.Execute(&b, facts); err != nil {
		return nil, fmt.Errorf("file %q: %w", name, err)
	}
	return b.Bytes(), nil
}
