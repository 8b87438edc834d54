package main

import (
	"errors"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
)

// newAnnouncer returns the announcer of the configured mode; nil if nothing is
// to be done.
func newAnnouncer(c Config, _ *zap.Logger) (edge.Announcer, error) {
	if c.Announce.Mode == announceNone {
		return nil, nil
	}
	return nil, errors.New("announce.mode interface is not there yet")
}
