package proxy

import (
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"

	"github.com/eclusa-lb/eclusa/lb"
)

// greet sends the header of the PROXY protocol as the first thing that the member
// gets, in one segment with what the client has sent by now. It does not wait for
// the client, since the member may be the one to speak first.
func (c *conn) greet(l *loop) error {
	client := netip.AddrPortFrom(c.src, c.srcPort)
	frontend := netip.AddrPortFrom(c.fe.id.Addr.Unmap(), c.fe.id.Port)
	header, err := proxyHeader(c.spec.ProxyProtocol, client, frontend)
	if err != nil {
		return err
	}
	n := copy(l.scratch, header)
	c.up.head = uint8(n) //nolint:gosec // 107 at most
	c.client.readable = true
	got, err := c.client.read(l.scratch[n:])
	if err != nil {
		return err
	}
	if got == eof {
		c.up.eof = true
	} else {
		n += got
	}
	sent, err := c.server.write(l.scratch[:n])
	if err != nil {
		return err
	}
	c.passed(l, &c.up, sent)
	if sent < n {
		c.up.keep(l.scratch[sent:n])
	}
	return nil
}

// proxyHeader returns the header for a client of a frontend. Both are of one
// family, which is the header's, whatever that of the member is.
func proxyHeader(version lb.ProxyProtocol, client, frontend netip.AddrPort) ([]byte, error) {
	number := byte(2)
	if version == lb.ProxyV1 {
		number = 1
	}
	return proxyproto.HeaderProxyFromAddrs(number, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(frontend)).Format()
}
