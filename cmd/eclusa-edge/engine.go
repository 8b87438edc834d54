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
func newEngine(c Config, log *zap.Logger, own func() ([]netip.Addr, error), dialFailed func(lb.Owner, lb.CheckID, lb.NodeName, error)) lb.Engine {
	if c.Engine == engineNftables {
		o := nftablesOptions(c)
		o.Log, o.OwnAddresses = log, own
		return nftables.New(o)
	}
	return proxy.New(proxy.Options{
		Log:                  log,
		DialTimeout:          c.Proxy.DialTimeout.D(),
		MaxConnections:       c.Proxy.MaxConnections,
		UDPSessions:          c.Proxy.UDPSessionsPerFrontend,
		UDPSessionsPerSource: c.Proxy.UDPSessionsPerSource,
		OnDialError:          dialFailed,
	})
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

// chooseEngine settles what "auto" stands for on this machine.
func chooseEngine(c Config, log *zap.Logger) Config {
	if c.Engine != engineAuto {
		return c
	}
	c.Engine = engineNftables
	why := "everything that the engine needs is here"
	if missing := missing(nftables.Check(nftablesOptions(c))); len(missing) > 0 {
		c.Engine, why = engineProxy, `"nftables" cannot work here: `+strings.Join(missing, "; ")
	}
	log.Info("chose an engine", zap.String("engine", c.Engine), zap.String("reason", why))
	return c
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
	if c.Engine == engineProxy {
		tell(out, "engine proxy: needs nothing but the ports that it listens on")
		return nil
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
