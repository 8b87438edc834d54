package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/eclusa-lb/eclusa/lab/ledger"
	"github.com/eclusa-lb/eclusa/release"
)

// installScript does on an edge's machine what docs/installation.md says.
//
//go:embed eclusa/install.sh
var installScript string

// Where the package has things on the edge.
const (
	packagedConfig      = "/etc/eclusa/edge.yaml"
	packagedCertificate = "/etc/eclusa/edge"
	packagedCA          = "/etc/eclusa/ca.crt"
	packagedStateDir    = "/var/lib/eclusa-edge"
)

// PackageEdge makes the Debian package of a version of the edge around a program
// that is built already, and returns its file.
func (l *Lab) PackageEdge(ctx context.Context, program, version string) (string, error) {
	src, err := source()
	if err != nil {
		return "", err
	}
	s := release.Source{Dir: src, Version: version, Revision: "unknown", Time: time.Unix(0, 0).UTC()}
	return release.Package(ctx, s, "deb", release.Platform{OS: "linux", Arch: runtime.GOARCH}, program, l.path("package"))
}

// AddEdge adds an edge to a running lab: a machine with a systemd of its own, on
// which the edge is installed from its Debian package. No cluster knows of it
// before there is an Edge object of its name, and the lab's lists of hosts do not
// have it. Remove takes it away again.
func (l *Lab) AddEdge(ctx context.Context) (*Edge, error) {
	l.mu.Lock()
	l.added++
	number := len(l.Edges) + l.added
	l.mu.Unlock()
	if number > maxEdges {
		return nil, fmt.Errorf("lab %q: at most %d edges", l.Options.Name, maxEdges)
	}
	p := edgePlace(number)
	e := &Edge{Host: l.host(p)}
	e.machine = true
	if err := l.switchOn(ctx, e, p); err != nil {
		return nil, errors.Join(err, e.Remove())
	}
	return e, nil
}

func (l *Lab) switchOn(ctx context.Context, e *Edge, p place) error {
	if err := l.power(e.Host, p); err != nil {
		return err
	}
	if err := l.issueEdge(ctx, e); err != nil {
		return err
	}
	return l.installEdges(ctx, e)
}

// Remove takes an edge that AddEdge has added off the lab, at once and with its
// machine.
func (e *Edge) Remove() error { return e.kill() }

// installEdges installs the package of the lab's own edge program on the machines.
func (l *Lab) installEdges(ctx context.Context, edges ...*Edge) error {
	deb, err := l.PackageEdge(ctx, l.bin(edgeProgram), Version)
	if err != nil {
		return err
	}
	for _, e := range edges {
		if err := e.install(ctx, deb); err != nil {
			return fmt.Errorf("edge %q: install %q: %w", e.Name, filepath.Base(deb), err)
		}
	}
	return nil
}

func (e *Edge) install(ctx context.Context, deb string) error {
	err := until(ctx, 30*time.Second, func(ctx context.Context) error {
		out, err := e.Command(ctx, "systemctl", "is-active", "sysinit.target").CombinedOutput()
		if err != nil {
			return fmt.Errorf("systemd has not started: %w: %s", err, bytes.TrimSpace(out))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := e.lab.writeTemplate(e.givenConfig(), edgeTemplate, e); err != nil {
		return err
	}
	cmd := e.Command(ctx, "sh", "-ec", installScript, "sh", deb, e.lab.EdgePKI(), e.Name, e.givenConfig())
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, bytes.TrimSpace(out))
	}
	return e.Ready(ctx)
}

// machineGroup makes the control group that a machine takes for the root of all, and
// returns its directory.
func (l *Lab) machineGroup(h *Host) (string, error) {
	name := l.Options.cgroup() + "/" + h.Name
	if err := makeCgroup(name); err != nil {
		return "", err
	}
	hs, err := ledger.Hierarchies()
	if err != nil {
		return "", err
	}
	for _, v := range hs {
		if v.V2 {
			return filepath.Join(v.Root, name), nil
		}
	}
	return "", errors.New("control groups of version 2 are not mounted, which a systemd needs")
}
