package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

const (
	// socketName is the socket in the state directory.
	socketName = "upgrade.sock"
	// maxSocketPath is the longest path that the address of a unix socket holds.
	maxSocketPath = 107
	// helloTimeout is how long whoever connects may take to say what it wants.
	helloTimeout = 10 * time.Second
)

// protocols are those that this program speaks.
var protocols = []int{1}

// The purposes of a Hello.
const (
	// TakeOver asks for the place of the running edge.
	TakeOver = "take-over"
	// Upgrade asks the running edge to start its program anew and give that its
	// place.
	Upgrade = "upgrade"
)

// Hello is what somebody says who connects.
type Hello struct {
	Protocols []int  `json:"protocols"`
	Purpose   string `json:"purpose"`
	// Edge is the name of the edge; another one gets nothing.
	Edge    string `json:"edge"`
	Version string `json:"version"`
	Engine  string `json:"engine,omitempty"`
}

// Listener waits for processes that want something of a running edge. It is the
// edge's own: whoever comes last has the socket's name.
type Listener struct {
	unix *net.UnixListener
	open sync.WaitGroup
}

// Listen makes the socket in the state directory, in place of one that is there.
func Listen(stateDir string) (*Listener, error) {
	var l *net.UnixListener
	err := inDir(stateDir, func(dir string) error {
		temporary := filepath.Join(dir, socketName+".new")
		if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var err error
		if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"}); err != nil {
			return err
		}
		// The name may be another process's by the time that this one closes it.
		l.SetUnlinkOnClose(false)
		if err = os.Chmod(temporary, 0o600); err == nil {
			err = os.Rename(temporary, filepath.Join(dir, socketName))
		}
		if err != nil {
			_ = l.Close()
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open the socket for upgrades: %w", err)
	}
	return &Listener{unix: l}, nil
}

// inDir calls f with a path of the directory that leaves room for a socket's name.
func inDir(dir string, f func(dir string) error) error {
	if len(dir)+len("/"+socketName+".new") <= maxSocketPath {
		return f(dir)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d", d.Fd()))
}

// Close closes the socket. Who has connected already is served.
func (l *Listener) Close() error { return l.unix.Close() }

// Serve calls handle with everybody who connects and says Hello, concurrently,
// until the listener is closed; it returns when all calls have. A connection is
// closed after its call.
func (l *Listener) Serve(ctx context.Context, handle func(context.Context, *Conn, Hello), complain func(error)) {
	defer l.open.Wait()
	for {
		c, err := l.unix.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			complain(fmt.Errorf("accept on the socket for upgrades: %w", err))
			rest := time.NewTimer(time.Second)
			<-rest.C // out of descriptors, most likely
			continue
		}
		l.open.Go(func() {
			defer c.Close() //nolint:errcheck // it ends either way
			if err := welcome(ctx, c, handle); err != nil {
				complain(fmt.Errorf("on the socket for upgrades: %w", err))
			}
		})
	}
}

func welcome(ctx context.Context, u *net.UnixConn, handle func(context.Context, *Conn, Hello)) error {
	p, err := lookAt(u)
	c := &Conn{unix: u, peer: p}
	if err != nil {
		c.stop(kindRefuse, err)
		return err
	}
	defer c.peer.close()
	c.within(helloTimeout)
	m, err := c.expect(kindHello)
	if errors.Is(err, io.EOF) {
		return nil // somebody who only looked whether anybody is there
	}
	if err != nil {
		return err
	}
	closeAll(m.files)
	h, err := decodeHello(m.data)
	if err != nil {
		c.stop(kindRefuse, err)
		return err
	}
	handle(ctx, c, h)
	return nil
}

// decodeHello reads a Hello and says what is wrong with it.
func decodeHello(data []byte) (Hello, error) {
	var h Hello
	if err := json.Unmarshal(data, &h); err != nil {
		return Hello{}, fmt.Errorf("hello: %w", err)
	}
	if !slices.ContainsFunc(h.Protocols, func(p int) bool { return slices.Contains(protocols, p) }) {
		return Hello{}, fmt.Errorf("hello: version %q speaks the hand-over protocols %v, and the running edge %v: stop the running edge before you start the other", h.Version, h.Protocols, protocols)
	}
	return h, nil
}

// ErrNobody says that nobody waits on the socket.
var ErrNobody = errors.New("no running edge waits for upgrades there")

// Dial connects to the edge that runs with the state directory, and fails with
// ErrNobody if there is none. It talks to processes of its own user and of root; root
// talks to those of the directory's owner too.
func Dial(ctx context.Context, stateDir string) (*Conn, error) {
	var c net.Conn
	err := inDir(stateDir, func(dir string) error {
		var d net.Dialer
		var err error
		c, err = d.DialContext(ctx, "unix", filepath.Join(dir, socketName))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNobody, err)
	}
	u := c.(*net.UnixConn)
	p, err := lookAt(u, ownerFor(os.Geteuid(), stateDir)...)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("the socket for upgrades: %w", err)
	}
	return &Conn{unix: u, peer: p}, nil
}

// PID returns the process at the other end, 0 if it is in another namespace.
func (c *Conn) PID() int { return c.peer.pid }
