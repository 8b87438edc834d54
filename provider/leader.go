package provider

import (
	"errors"
)

// ErrNotLeader says that the Lease is held by another, or by nobody.
var ErrNotLeader = errors.New("not the leader")
