package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/nftables"
	"github.com/eclusa-lb/eclusa/lb/proxy"
)

// What the engine "nftables" leaves in the kernel goes on to take connections,
// with the members of then, whatever the next engine does. Who lacks CAP_NET_ADMIN
// cannot see it, so that engine leaves a note in the state directory too.

// notePath is the file that names the network in which the kernel may serve.
func notePath(c Config) string { return filepath.Join(c.StateDir, "kernel") }

// thisNetwork names this network namespace: it has the same name until it ends, and
// no other has it.
func thisNetwork() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(s) }()
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == nil {
		return fmt.Sprintf("%s %d", strings.TrimSpace(string(boot)), cookie), nil
	}
	// Linux before 5.14. The number may be used again when a namespace has ended.
	var at unix.Stat_t
	if err := unix.Stat("/proc/self/ns/net", &at); err != nil {
		return "", os.NewSyscallError("stat", err)
	}
	return fmt.Sprintf("%s inode %d", strings.TrimSpace(string(boot)), at.Ino), nil
}

// noteKernel notes that the kernel serves from now on.
func noteKernel(c Config) error {
	network, err := thisNetwork()
	if err != nil {
		return err
	}
	return os.WriteFile(notePath(c), []byte(network+"\n"), 0o600)
}

// noted tells whether the kernel may serve, as far as the state directory knows.
func noted(c Config) bool {
	was, err := os.ReadFile(notePath(c))
	if err != nil {
		return false
	}
	is, err := thisNetwork()
	return err == nil && strings.TrimSpace(string(was)) == is
}

func forgetKernel(c Config) error {
	if err := os.Remove(notePath(c)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// kernelServes tells whether there is something in the kernel that has to be taken
// away, and returns an error if this program may not do that.
func kernelServes(c Config) (bool, error) {
	found, err := nftables.Left()
	may := "serves"
	switch {
	case found && err == nil:
		return true, nil
	case err == nil || !found && !noted(c):
		return false, nil // without rights and without a note there was no other engine
	case !found:
		may = "may serve"
	}
	return true, fmt.Errorf("the kernel %s by what the engine %q has left, with the members of then, and this program is not allowed to end that: %w; "+
		"run `eclusa-edge --cleanup --config FILE` as root on this machine, or start the edge with CAP_NET_ADMIN and CAP_NET_RAW once, which does the same. "+
		"If `nft delete table inet %s` has done it already, remove the file %s", may, nftables.Name, err, nftables.TableName, notePath(c))
}

// replacing is the engine "proxy" in place of the kernel, which serves until this
// one does for the first time.
type replacing struct {
	*proxy.Engine
	config Config
	log    *zap.Logger

	mu   sync.Mutex // guards what follows
	over bool       // the kernel does not serve any more
}

// Adopt takes what a process before hands over: nothing if it had the other engine.
func (e *replacing) Adopt(ctx context.Context, receive func() (lb.Parcel, error)) error {
	first, err := receive()
	if errors.Is(err, io.EOF) {
		return nil
	}
	taken := false
	return e.Engine.Adopt(ctx, func() (lb.Parcel, error) {
		if taken {
			return receive()
		}
		taken = true
		return first, err
	})
}

// Set sets the table, and then ends what the kernel does: connections are taken by
// whoever is there first, and until then that is the kernel.
func (e *replacing) Set(ctx context.Context, t lb.Table) (map[lb.Frontend]error, error) {
	refused, err := e.Engine.Set(ctx, t)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return refused, nil
	}
	if _, err := nftables.Cleanup(e.log); err != nil {
		return nil, fmt.Errorf("end what the engine %q has left in the kernel: %w", nftables.Name, err)
	}
	e.over = true
	e.log.Info("this program serves in place of the kernel; connections through that were reset", zap.String("before", nftables.Name), zap.String("engine", e.Name()))
	if err := forgetKernel(e.config); err != nil {
		e.log.Warn("the note that the kernel serves cannot be removed", zap.Error(err))
	}
	return refused, nil
}
