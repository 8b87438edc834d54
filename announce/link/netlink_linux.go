package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// mark is the protocol (IFA_PROTO) of the addresses that are added here. The
// kernel keeps it and gives it no meaning; ip(8) shows it.
const mark = 0xec

const ifaProto = 11 // IFA_PROTO

// forever is a lifetime without end.
const forever = 0xffffffff

// conn talks to the kernel about addresses. It belongs to one goroutine.
type conn struct {
	handle *nl.SocketHandle
	names  map[int]string // of interfaces
}

// attributes are what matters of an address that is there.
type attributes struct {
	marked bool
}

// link is a network interface.
type link struct {
	name  string
	index int
	mac   net.HardwareAddr // empty if it has no neighbours
	up    bool
}

func dial() (*conn, error) {
	// Not from the library's own pool: a request of its own would open a socket
	// for each of thousands of addresses.
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	timeout := unix.Timeval{Sec: 10}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		s.Close()
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	return &conn{handle: &nl.SocketHandle{Socket: s}}, nil
}

func (c *conn) close() { c.handle.Close() }

func (c *conn) request(kind, flags int) *nl.NetlinkRequest {
	r := nl.NewNetlinkRequest(kind, flags)
	r.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: c.handle}
	return r
}

func (c *conn) link(name string) (link, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		if _, ok := errors.AsType[netlink.LinkNotFoundError](err); ok {
			return link{}, fmt.Errorf("interface %q: there is none of this name", name)
		}
		return link{}, fmt.Errorf("interface %q: %w", name, err)
	}
	a := l.Attrs()
	found := link{name: name, index: a.Index, up: a.Flags&net.FlagUp != 0}
	if a.EncapType == "ether" && len(a.HardwareAddr) == 6 && a.Flags&net.FlagLoopback == 0 {
		found.mac = a.HardwareAddr
	}
	return found, nil
}

// addresses returns all single addresses (/32 and /128) of all interfaces, and
// those with a shorter prefix as well: the address is there either way.
func (c *conn) addresses() (map[owned]attributes, error) {
	if err := c.readNames(); err != nil {
		return nil, err
	}
	const tries = 5
	var err error
	for range tries {
		var present map[owned]attributes
		if present, err = c.dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return present, err
		}
	}
	return nil, fmt.Errorf("list the addresses: %w", err)
}

func (c *conn) readNames() error {
	ifaces, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("list the interfaces: %w", err)
	}
	c.names = make(map[int]string, len(ifaces))
	for _, i := range ifaces {
		c.names[i.Index] = i.Name
	}
	return nil
}

func (c *conn) dump() (map[owned]attributes, error) {
	r := c.request(unix.RTM_GETADDR, unix.NLM_F_DUMP)
	r.AddData(nl.NewIfAddrmsg(unix.AF_UNSPEC))
	present := make(map[owned]attributes)
	var parseErr error
	err := r.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWADDR, func(data []byte) bool {
		var o owned
		var a attributes
		if o, a, parseErr = c.parse(data); parseErr != nil {
			return false
		}
		if o.addr.IsValid() {
			present[o] = a
		}
		return true
	})
	if err = errors.Join(err, parseErr); err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	return present, nil
}

func (c *conn) parse(data []byte) (owned, attributes, error) {
	if len(data) < unix.SizeofIfAddrmsg {
		return owned{}, attributes{}, errors.New("a message of the kernel is too short")
	}
	msg := nl.DeserializeIfAddrmsg(data)
	attrs, err := nl.ParseRouteAttr(data[unix.SizeofIfAddrmsg:])
	if err != nil {
		return owned{}, attributes{}, err
	}
	var address, local netip.Addr
	var found attributes
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(a.Value)
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(a.Value)
		case ifaProto:
			found.marked = len(a.Value) == 1 && a.Value[0] == mark
		}
	}
	if local.IsValid() { // on point-to-point links the other one is the peer's
		address = local
	}
	return owned{c.names[int(msg.Index)], address}, found, nil
}

// add adds an address. It is deprecated from the start, and of IPv4 it has link
// scope, so that neither family chooses it as the source of connections to
// anywhere; it is not checked for duplicates, since it may move between edges.
func (c *conn) add(l link, addr netip.Addr) error {
	r := c.request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	flags := uint32(unix.IFA_F_NOPREFIXROUTE)
	msg := addrmsg(l, addr)
	if addr.Is4() {
		msg.Scope = unix.RT_SCOPE_LINK
	} else {
		flags |= unix.IFA_F_NODAD
	}
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, addr.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, addr.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(flags)))
	r.AddData(nl.NewRtAttr(ifaProto, []byte{mark}))
	lifetimes := nl.IfaCacheInfo{IfaCacheinfo: unix.IfaCacheinfo{Valid: forever}} // preferred for no time at all
	r.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, lifetimes.Serialize()))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	switch {
	case errors.Is(err, syscall.EEXIST):
		return errors.New("was added by somebody else just now")
	case errors.Is(err, syscall.EACCES) && addr.Is6():
		return fmt.Errorf("IPv6 is switched off on the interface (net.ipv6.conf.%s.disable_ipv6): %w", l.name, err)
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("the program lacks CAP_NET_ADMIN: %w", err)
	}
	return err
}

// remove removes an address; one that is gone already is fine.
func (c *conn) remove(o owned) error {
	var index int
	for i, name := range c.names {
		if name == o.link {
			index = i
		}
	}
	if index == 0 {
		return nil
	}
	r := c.request(unix.RTM_DELADDR, unix.NLM_F_ACK)
	r.AddData(addrmsg(link{index: index}, o.addr))
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, o.addr.AsSlice()))
	_, err := r.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, syscall.EADDRNOTAVAIL) {
		return nil
	}
	return err
}

func addrmsg(l link, addr netip.Addr) *nl.IfAddrmsg {
	family := unix.AF_INET6
	if addr.Is4() {
		family = unix.AF_INET
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Prefixlen = uint8(addr.BitLen()) //nolint:gosec // 32 or 128
	msg.Index = uint32(l.index)          //nolint:gosec // the kernel's own number, 32 bits there
	return msg
}
