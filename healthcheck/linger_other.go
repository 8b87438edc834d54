//go:build !unix

package healthcheck

import "syscall"

// resetOnClose does nothing here: probes are closed in the ordinary way.
func resetOnClose(syscall.RawConn) error { return nil }
