package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/nftables"
	"github.com/eclusa-lb/eclusa/lb/proxy"
)

// newEngine returns the configured engine. dialFailed is told of members that
// could not be reached, own tells the machine's addresses.
func newEngine(c Config, log *zap.Logger, own func() ([]netip.Addr, error), dialFailed func(lb.Owner, lb.CheckID, lb.NodeName, error)) (lb.Engine, error) {
	if c.Engine == engineNftables {
		o := nftablesOptions(c)
		o.Log, o.OwnAddresses = log, own
		return nftables.New(o), nil
	}
	p := proxy.New(proxy.Options{
		Log:                  log,
		DialTimeout:          c.Proxy.DialTimeout.D(),
		MaxConnections:       c.Proxy.MaxConnections,
		UDPSessions:          c.Proxy.UDPSessionsPerFrontend,
		UDPSessionsPerSource: c.Proxy.UDPSessionsPerSource,
		OnDialError:          dialFailed,
	})
	serves, err := kernelServes(c)
	switch {
	case err != nil:
		return nil, fmt.Errorf("engine %q: %w", c.Engine, err)
	case serves:
		log.Warn("the kernel still serves by what another engine has left; that ends when this program serves, and connections through it are reset", zap.String("before", nftables.Name), zap.String("engine", c.Engine))
		return &replacing{Engine: p, config: c, log: log}, nil
	}
	return p, nil
}

func nftablesOptions(c Config) nftables.Options {
	o := nftables.Options{KeepSysctls: c.Nftables.KeepSysctls, KeepSources: !c.Nftables.SourceNAT, Direct: c.Nftables.Direct}
	for _, p := range c.Nftables.SourceAddresses {
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			o.SourceAddresses = append(o.SourceAddresses, a)
		}
	}
	return o
}

// chooseEngine settles what "auto" stands for on this machine. While the kernel
// serves it does not stand for "proxy": that resets all connections, and what is
// missing may be back with the next start.
func chooseEngine(c Config, log *zap.Logger) (Config, error) {
	if c.Engine != engineAuto {
		return c, nil
	}
	c.Engine = engineNftables
	why := "everything that the engine needs is here"
	if missing := missing(nftables.Check(nftablesOptions(c))); len(missing) > 0 {
		lacking := strings.Join(missing, "; ")
		if serves, err := kernelServes(c); serves || err != nil {
			return c, fmt.Errorf("engine %q: the kernel serves, by what %q has left, and that cannot work here any more: %s. Put that right, or set \"engine: proxy\", which resets the connections through the kernel; `eclusa-edge --cleanup --config FILE` ends it by hand", engineAuto, engineNftables, lacking)
		}
		c.Engine, why = engineProxy, `"nftables" cannot work here: `+lacking
	}
	log.Info("chose an engine", zap.String("engine", c.Engine), zap.String("reason", why))
	return c, nil
}

// missing tells what keeps an engine from working.
func missing(items []nftables.Item) []string {
	var all []string
	for _, i := range items {
		if i.Missing {
			all = append(all, fmt.Sprintf("%s: %s", i.Name, i.Detail))
		}
	}
	return all
}

// checkEngine tells whether the configured engine can work here. It returns an
// error if it cannot.
func checkEngine(out io.Writer, c Config) error {
	serves, err := kernelServes(c)
	if c.Engine == engineProxy {
		tell(out, "engine proxy: needs nothing but the ports that it listens on")
		if serves && err == nil {
			tell(out, "The kernel still serves by what the engine nftables has left. A start of the edge ends that, and resets the connections through it.")
		}
		return err
	}
	items := nftables.Check(nftablesOptions(c))
	for _, i := range items {
		verdict := "ok"
		switch {
		case i.Missing:
			verdict = "missing"
		case i.Doubtful:
			verdict = "doubtful"
		}
		tell(out, "%-9s %s: %s", verdict, i.Name, i.Detail)
	}
	lacking := missing(items)
	switch {
	case c.Engine == engineAuto && len(lacking) > 0 && serves:
		return errors.New("engine auto: would not start, since the kernel serves by what nftables has left, which cannot work here any more: what is missing is listed above")
	case c.Engine == engineAuto && len(lacking) > 0:
		tell(out, "engine auto: would choose proxy")
	case c.Engine == engineAuto:
		tell(out, "engine auto: would choose nftables")
	case len(lacking) > 0:
		return errors.New(`the engine "nftables" cannot work here: what is missing is listed above; "engine: proxy" needs none of it`)
	}
	return nil
}

// cleanup takes everything of this edge out of the kernel: its table, the
// connections through it, and the addresses that were added to an interface.
func cleanup(ctx context.Context, out io.Writer, c Config) error {
	lock, err := edge.Lock(c.StateDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	found, err := nftables.Cleanup(zap.NewNop())
	if err != nil {
		return fmt.Errorf("delete the kernel's table: %w", err)
	}
	if err := forgetKernel(c); err != nil {
		return err
	}
	if found {
		tell(out, `Deleted the table "inet %s", and reset the connections through it.`, nftables.TableName)
	} else {
		tell(out, `There is no table "inet %s".`, nftables.TableName)
	}
	if c.Announce.Mode != announceInterface {
		return nil
	}
	announcer, err := newAnnouncer(c, zap.NewNop())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := len(announcer.Held())
	if err := announcer.Set(ctx, nil); err != nil {
		return err
	}
	tell(out, "Removed %d addresses.", n)
	return nil
}
