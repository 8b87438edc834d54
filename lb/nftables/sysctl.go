package nftables

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// setting is one of the kernel's, of this network namespace, that the engine
// depends on.
type setting struct {
	name string // below /proc/sys
	want string
	why  string
	// without tells what is not carried without it; nil if everything is.
	without *version
	// before is called before the setting is changed.
	before func() error
}

var settings = []setting{
	{name: "net/ipv4/ip_forward", want: "1", without: v4, why: "without it no IPv4 packet reaches a member"},
	{name: "net/ipv6/conf/all/forwarding", want: "1", without: v6, why: "without it no IPv6 packet reaches a member", before: keepRouterAdvertisements},
	{name: "net/netfilter/nf_conntrack_tcp_loose", want: "0", why: "with 1 a connection that was cut may be taken for a new one in the middle, and hang"},
	{name: "net/netfilter/nf_conntrack_tcp_be_liberal", want: "1", why: "with 0 a segment that was delayed for long may get its connection reset"},
}

// finding is what is known of a setting.
type finding struct {
	setting
	have string
	err  error // it cannot be read
}

func (f finding) right() bool { return f.err == nil && f.have == f.want }

// absent tells whether the kernel does not have the setting: a machine without
// IPv6.
func (f finding) absent() bool { return errors.Is(f.err, os.ErrNotExist) }

func (s setting) path() string { return filepath.Join("/proc/sys", s.name) }

func (s setting) dotted() string { return strings.ReplaceAll(s.name, "/", ".") }

func (s setting) read() finding {
	b, err := os.ReadFile(s.path())
	return finding{s, strings.TrimSpace(string(b)), err}
}

// applySettings sets what is wrong and says so, or only complains. It returns the
// families of which nothing can be carried, and an error if that is IPv4, without
// which an edge is of little use.
func (e *Engine) applySettings() (closed map[*version]error, err error) {
	keep := e.opts.KeepSysctls
	if who := clusterProxy(e.rules); who != "" && !keep {
		keep = true
		e.log.Warn("the kernel's settings are left alone, since they are another program's too", zap.String("reason", who))
	}
	e.keepSettings = keep
	closed = make(map[*version]error)
	for _, s := range settings {
		f := s.read()
		if f.right() || f.absent() {
			continue
		}
		err := f.err
		if err == nil && keep {
			err = errors.New("it is left alone")
		}
		if err == nil {
			err = s.set()
		}
		if err == nil {
			e.log.Info("changed a setting of the kernel", zap.String("setting", s.dotted()), zap.String("was", f.have), zap.String("is", s.want), zap.String("reason", s.why))
			continue
		}
		e.log.Warn("a setting of the kernel is not as it should be", zap.String("setting", s.dotted()), zap.String("is", f.have), zap.String("want", s.want), zap.String("reason", s.why), zap.Error(err))
		if s.without != nil {
			closed[s.without] = fmt.Errorf("setting %s is %q and must be %q, since %s: %w: %w", s.dotted(), f.have, s.want, s.why, err, lb.ErrUnsupported)
		}
	}
	return closed, closed[v4]
}

func (s setting) set() error {
	if s.before != nil {
		if err := s.before(); err != nil {
			return err
		}
	}
	return os.WriteFile(s.path(), []byte(s.want), 0o644) //nolint:gosec // a file of the kernel
}

// keepRouterAdvertisements lets interfaces that learn their routes from router
// advertisements go on to do so, which a forwarding machine does only if told.
func keepRouterAdvertisements() error {
	const dir = "/proc/sys/net/ipv6/conf"
	interfaces, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, i := range interfaces {
		file := filepath.Join(dir, i.Name(), "accept_ra")
		b, err := os.ReadFile(file)
		if err != nil || strings.TrimSpace(string(b)) != "1" {
			continue
		}
		if err := os.WriteFile(file, []byte("2"), 0o644); err != nil { //nolint:gosec // a file of the kernel
			return err
		}
	}
	return nil
}
