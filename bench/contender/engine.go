package contender

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/nftables"
	"github.com/eclusa-lb/eclusa/lb/proxy"
	"github.com/eclusa-lb/eclusa/version"
)

// engines makes eclusa's engines. The one in the kernel has a pool of source
// addresses, as its documentation recommends.
var engines = map[string]func() lb.Engine{
	"proxy":    func() lb.Engine { return proxy.New(proxy.Options{}) },
	"nftables": func() lb.Engine { return nftables.New(nftables.Options{SourceAddresses: Sources(PoolSize)}) },
}

// EngineNames are the names of eclusa's engines, sorted.
func EngineNames() []string { return slices.Sorted(maps.Keys(engines)) }

// NewEngine makes one of eclusa's engines.
func NewEngine(name string) (lb.Engine, error) {
	make, ok := engines[name]
	if !ok {
		return nil, fmt.Errorf("engine %q: there is none of that name; there are %q", name, EngineNames())
	}
	return make(), nil
}

// engine is one of eclusa's engines, in a process of its own.
type engine struct{ name string }

func (e engine) Name() string             { return e.name }
func (e engine) Title() string            { return "eclusa " + e.name }
func (e engine) Version() (string, error) { return "eclusa " + version.String(), nil }
func (e engine) Carries(lb.Protocol) bool { return true }

func (e engine) Configuration(Setup, string) (string, error) { return "", nil }

// order is what the process of an engine is told.
type order struct {
	Engine string `json:",omitempty"`
	Setup  Setup
}

// report is its answer: how long Set took, or why it did not work.
type report struct {
	Took  time.Duration
	Error string `json:",omitempty"`
}

func (e engine) Start(_ context.Context, n *Network, s Setup, _ string) (Running, error) {
	role := "engine"
	if s.Checked {
		role = "edge"
	}
	argument, err := json.Marshal(order{e.name, s})
	if err != nil {
		return nil, err
	}
	p, err := n.Edge.StartRole(Role{Name: role, Argument: argument})
	if err != nil {
		return nil, err
	}
	r := &engineRunning{process: p}
	if err = r.hear(); err == nil {
		err = n.Client.Reach(netip.AddrPortFrom(VIP(0), RequestFrontend), startPatience)
	}
	if err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

type engineRunning struct {
	process *Process
	took    []time.Duration
}

func (r *engineRunning) Targets(port uint16) []netip.AddrPort { return vipTargets(port) }
func (r *engineRunning) PIDs() []int                          { return []int{r.process.PID()} }

// Stop gives the engine the time to take back what it has told the kernel.
func (r *engineRunning) Stop() {
	r.process.EndInput()
	_ = r.process.Wait()
}

func (r *engineRunning) Set(_ context.Context, s Setup) error {
	if err := r.process.Tell(order{Setup: s}); err != nil {
		return err
	}
	return r.hear()
}

// Took is how long each Set of the engine has taken, without the way to its process.
func (r *engineRunning) Took() []time.Duration { return r.took }

func (r *engineRunning) hear() error {
	var a report
	if err := r.process.Hear(&a); err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	r.took = append(r.took, a.Took)
	return nil
}

// RunEngine is the process of an engine: it does as it is told until its input ends.
func RunEngine(argument json.RawMessage) error {
	var o order
	if err := json.Unmarshal(argument, &o); err != nil {
		return err
	}
	e, err := NewEngine(o.Engine)
	if err != nil {
		return err
	}
	defer func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		_ = e.Shutdown(now)
	}()
	orders, reports := json.NewDecoder(bufio.NewReader(os.Stdin)), json.NewEncoder(os.Stdout)
	for {
		table := o.Setup.table()
		begun := time.Now()
		refused, err := e.Set(context.Background(), table)
		a := report{Took: time.Since(begun)}
		for f, why := range refused {
			err = errors.Join(err, fmt.Errorf("%s: %w", f, why))
		}
		if err != nil {
			a.Error = err.Error()
		}
		if err := reports.Encode(a); err != nil {
			return err
		}
		o = order{}
		switch err := orders.Decode(&o); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// table is the setup as engines see it.
func (s Setup) table() lb.Table {
	t := lb.Table{Routes: make(map[lb.Frontend]lb.Route), Groups: make(map[lb.GroupID]lb.Group)}
	group := lb.GroupID{Cluster: "bench", Name: "nodes", Family: lb.IPv4}
	var g lb.Group
	for i := range Nodes {
		for _, m := range s.Members {
			if m == NodeAddr(i) {
				g.Backends = append(g.Backends, lb.Backend{Node: lb.NodeName(fmt.Sprintf("n%d", i+1)), Addr: m, Weight: 1, Check: "bench"})
			}
		}
	}
	t.Groups[group] = g
	route := func(vip netip.Addr, f Frontend) {
		r := lb.Route{
			Owner: lb.Owner{Cluster: "bench", UID: lb.UID(vip.String())}, Name: "bench/" + vip.String(), Group: group, TargetPort: f.TargetPort,
			Algorithm: lb.RoundRobin, IdleTimeout: lb.DefaultIdleTimeout, DrainTimeout: lb.DefaultDrainTimeout, ResetDead: true,
		}
		if f.Protocol == lb.UDP {
			r.IdleTimeout = lb.DefaultUDPIdleTimeout
		}
		t.Routes[lb.Frontend{Addr: vip, Port: f.Port, Protocol: f.Protocol}] = r
	}
	for _, f := range Frontends {
		route(VIP(0), f)
	}
	for i := range s.Others {
		route(VIP(1+i), Frontends[0])
	}
	return t
}
