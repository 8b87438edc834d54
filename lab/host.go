package lab

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/eclusa-lb/eclusa/lab/ledger"
	"github.com/eclusa-lb/eclusa/lab/space"
)

// Host is a machine of the lab: network, process, mount and host name
// namespaces, and a first process that holds them. All methods are safe for
// concurrent use.
type Host struct {
	// Name is the host's name, such as node-1.
	Name string
	// Addr4 and Addr6 are its addresses. The fabric has none here: it is
	// the router of both subnets.
	Addr4, Addr6 netip.Addr

	lab     *Lab
	machine bool // with a systemd of its own
	holder  ledger.Process
}

// Alive reports whether the host's first process is there.
func (h *Host) Alive() bool { return h.holder.Running() }

// Do runs f on a thread inside the host's network namespace and returns its
// error. Sockets that f makes stay there and may be used from anywhere
// afterwards; goroutines that f starts do not run inside. f runs in a goroutine
// of its own, so it must not end a test with t.Fatal.
func (h *Host) Do(f func() error) error {
	if !h.Alive() {
		return fmt.Errorf("host %q: is down", h.Name)
	}
	return h.space().Net(f)
}

// NetNS is the file by which programs such as nsenter enter the host's network and
// nothing else of it.
func (h *Host) NetNS() string { return fmt.Sprintf("/proc/%d/ns/net", h.holder.PID) }

func (h *Host) space() space.Space { return space.Space{PID: h.holder.PID} }

// DialContext connects from the host. The address must be an IP address and a
// port: names are not resolved inside.
func (h *Host) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var d net.Dialer
	return h.DialWith(ctx, &d, network, address)
}

// DialWith is DialContext with a dialer of the caller's, for a timeout or a
// local address.
func (h *Host) DialWith(ctx context.Context, d *net.Dialer, network, address string) (net.Conn, error) {
	if err := literal(address); err != nil {
		return nil, err
	}
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens for connections on the host.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return l, err
}

// ListenPacket opens a datagram socket on the host.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return c, err
}

// HTTPClient is a client on the host: a connection of its own for each request,
// no proxy, no redirects followed, ten seconds for all.
func (h *Host) HTTPClient() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DialContext: h.DialContext, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       10 * time.Second,
	}
}

// Command is a command inside all namespaces of the host. Ending it, through
// ctx or Process.Kill, ends the command inside.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append([]string{"enter", strconv.Itoa(h.holder.PID)}, args...)
	return exec.CommandContext(ctx, h.lab.bin("anchor"), argv...)
}

// LinkDown cuts the host off: packets to and from it vanish without a word, as
// when its cable is pulled or its power fails. Its processes go on.
func (h *Host) LinkDown() error { return h.setPort(netlink.LinkSetDown) }

// LinkUp undoes LinkDown.
func (h *Host) LinkUp() error { return h.setPort(netlink.LinkSetUp) }

// setPort acts on the fabric's end of the cable. Taking the host's own end down
// would delete its routes and give its programs errors.
func (h *Host) setPort(set func(netlink.Link) error) error {
	err := h.lab.Fabric.Do(func() error {
		port, err := netlink.LinkByName(h.Name)
		if err != nil {
			return err
		}
		return set(port)
	})
	if err != nil {
		return fmt.Errorf("host %q: switch its link: %w", h.Name, err)
	}
	return nil
}

// kill ends the host with all its processes at once.
func (h *Host) kill() error { return kill(h.holder) }

func literal(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("dial %q: want an IP address, names are not resolved inside the lab", address)
	}
	return nil
}
