package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
)

func newWithdrawCommand() *cobra.Command {
	return withConfig(&cobra.Command{
		Use:   "withdraw --config FILE",
		Short: "Take the load balancers' addresses off this machine, for good",
		Long: `Take the load balancers' addresses off this machine, for good.

A stopped edge leaves them in place, so that a restart is not noticed and nobody
else gets their traffic by accident. Use this after the edge was stopped and is
not to start again: its addresses may then be announced by another machine.`,
	}, func(c *cobra.Command, config Config) error {
		n, err := withdraw(c.Context(), config)
		if err != nil {
			return err
		}
		tell(c.ErrOrStderr(), "Removed %d addresses.", n)
		return nil
	})
}

func withdraw(ctx context.Context, c Config) (int, error) {
	lock, err := edge.Lock(c.StateDir)
	if err != nil {
		return 0, err
	}
	defer lock.Close()
	announcer, err := newAnnouncer(c, zap.NewNop())
	if err != nil {
		return 0, err
	}
	if announcer == nil {
		return 0, fmt.Errorf("announce.mode: %q: this edge puts no addresses on the machine", c.Announce.Mode)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	n := len(announcer.Held())
	return n, announcer.Set(ctx, nil)
}
