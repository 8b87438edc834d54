//go:build unix

package healthcheck

import "syscall"

// resetOnClose makes close send a reset. It is set before connecting, so that it
// holds for an attempt that is given up in the moment it succeeds, too.
func resetOnClose(c syscall.RawConn) error {
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
	})
	if err != nil {
		return err
	}
	return failed
}
