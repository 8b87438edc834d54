package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// watch waits for the end of its standard input, whose other end the lab's
// owner holds: it comes when the owner dies, however it dies. A word on it
// means that the owner leaves in peace, and the lab may stay.
func watch(dir string, owner io.Reader) error {
	// A Ctrl-C in the owner's terminal must not end the one who cleans up.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	word, err := io.ReadAll(io.LimitReader(owner, 64))
	if err != nil || len(word) > 0 {
		return err
	}
	l, err := ledger.Read(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil || l.Detached {
		return err
	}
	return ledger.Clean(dir)
}
