package main

import (
	"fmt"
	"path/filepath"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/announce/link"
	"github.com/eclusa-lb/eclusa/edge"
)

// newAnnouncer returns the announcer of the configured mode; nil if nothing is
// to be done.
func newAnnouncer(c Config, log *zap.Logger) (edge.Announcer, error) {
	if c.Announce.Mode != announceInterface {
		return nil, nil
	}
	a, err := link.New(link.Options{
		Interface: c.Announce.Interface,
		StateFile: filepath.Join(c.StateDir, "announced.json"),
		Log:       log,
	})
	if err != nil {
		return nil, fmt.Errorf("announce.interface: %w", err)
	}
	return a, nil
}
