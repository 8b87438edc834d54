package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lab/space"
)

// hold sets up the host that from describes, says so on to, and then does what
// the first process of a process namespace must: it takes note of the end of
// orphans, or becomes the systemd that does. Only SIGKILL ends it, and with it the
// host.
func hold(from io.Reader, to io.WriteCloser) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	var h space.Host
	if err := json.NewDecoder(from).Decode(&h); err != nil {
		return fmt.Errorf("host description: %w", err)
	}
	if err := unix.Sethostname([]byte(h.Name)); err != nil {
		return fmt.Errorf("host name %q: %w", h.Name, err)
	}
	if h.Machine != nil {
		return fmt.Errorf("machine %q: %w", h.Name, become(h, to))
	}
	if err := mount(h); err != nil {
		return fmt.Errorf("host %q: %w", h.Name, err)
	}
	if _, err := io.WriteString(to, space.Ready); err != nil {
		return err
	}
	to.Close()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	for range ended {
		reap()
	}
	return nil
}

func reap() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
	}
}
