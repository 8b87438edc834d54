package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/eclusa-lb/eclusa/lb"
)

// ends are those of a flow, as the key of the rules has them.
type ends struct {
	client   netip.AddrPort
	frontend lb.Frontend
}

// key is what the rules make of them.
func (e ends) key() string {
	b := append(e.client.Addr().AsSlice(), byte(e.client.Port()>>8), byte(e.client.Port()), 0, 0)
	return string(append(b, tupleKey(e.frontend)...))
}

func readEnds(v *version, k []byte) (ends, bool) {
	n := int(v.length)
	if len(k) < 2*n+12 {
		return ends{}, false
	}
	client, ok := netip.AddrFromSlice(k[:n])
	frontend, there := netip.AddrFromSlice(k[n+4 : 2*n+4])
	return ends{
		client: netip.AddrPortFrom(client, binary.BigEndian.Uint16(k[n:])),
		frontend: lb.Frontend{
			Addr: frontend, Protocol: protocolOf(k[2*n+4]), Port: binary.BigEndian.Uint16(k[2*n+8:]),
		},
	}, ok && there
}

// changed tells whether a flow has ended, or another one has the same ends. On error
// it has not.
func (s *socket) changed(f directFlow) bool {
	now, there, err := s.element(f.set, f.key)
	return err == nil && (!there || hostMark([]byte(now.data)) != f.member)
}

// connected tells whether the ends of a flow that was cut have a member again.
func (s *socket) connected(e ends) (bool, error) {
	now, there, err := s.element("flows"+versionOf(e.frontend.Addr).suffix, e.key())
	return there && hostMark([]byte(now.data)) != tombstone, err
}
