package contender

import (
	"context"
	"errors"
	"net/netip"

	"github.com/eclusa-lb/eclusa/lb"
)

// direct is no load balancer: the client goes to the nodes in turn, past the edge.
type direct struct{}

func (direct) Name() string             { return "direct" }
func (direct) Title() string            { return "direct" }
func (direct) Version() (string, error) { return "no load balancer", nil }
func (direct) Carries(lb.Protocol) bool { return true }

func (direct) Configuration(Setup, string) (string, error) { return "", nil }

func (direct) Start(context.Context, *Network, Setup, string) (Running, error) {
	return directRunning{}, nil
}

type directRunning struct{}

func (directRunning) Targets(port uint16) (all []netip.AddrPort) {
	for _, f := range Frontends {
		if f.Port != port {
			continue
		}
		for i := range Nodes {
			all = append(all, netip.AddrPortFrom(DirectAddr(i), f.TargetPort))
		}
	}
	return all
}

func (directRunning) PIDs() []int { return nil }

func (directRunning) Set(context.Context, Setup) error {
	return errors.New("there is no load balancer whose members could change")
}

func (directRunning) Stop() {}
