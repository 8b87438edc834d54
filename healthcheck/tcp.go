package healthcheck

import (
	"context"
	"net"
	"net/netip"
	"syscall"
)

// dialer makes the connections of all real probers. They are closed with a
// reset, so that neither end keeps one in TIME_WAIT and connection tracking
// forgets it, and they never speak the PROXY protocol.
type dialer struct {
	control func(network, address string, c syscall.RawConn) error
}

// dial connects within ctx, which carries spec's timeout.
func (d dialer) dial(ctx context.Context, addr netip.AddrPort, spec Spec) (net.Conn, error) {
	nd := net.Dialer{KeepAlive: -1, FallbackDelay: -1, Control: d.prepare}
	conn, err := nd.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return nil, classify(err).inTime("no answer to the connection attempt", spec)
	}
	return conn, nil
}

// prepare runs on a socket before it connects.
func (d dialer) prepare(network, address string, c syscall.RawConn) error {
	if d.control != nil {
		if err := d.control(network, address, c); err != nil {
			return err
		}
	}
	return resetOnClose(c)
}

// tcpProber takes an accepted connection for an answer.
type tcpProber struct{ dialer }

// Probe connects and resets the connection.
func (p tcpProber) Probe(ctx context.Context, addr netip.AddrPort, spec Spec) error {
	conn, err := p.dial(ctx, addr, spec)
	if err != nil {
		return err
	}
	_ = conn.Close() // the connection has served its purpose
	return nil
}
