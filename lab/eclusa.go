package lab

import "context"

// Edge is a host that runs eclusa-edge.
type Edge struct {
	*Host
	Process *Process
}

func (l *Lab) startEclusa(ctx context.Context) error { return nil }
