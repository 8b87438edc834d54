package link

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// tellNeighbours sends a gratuitous ARP request or an unsolicited neighbour
// advertisement for each address. Nobody confirms them.
func tellNeighbours(l link, addrs []netip.Addr) error {
	if len(l.mac) == 0 || !l.up {
		return nil
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is buffered in it
	// A send that would block is a queue that is full; more would only be lost.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return fmt.Errorf("set the timeout of a packet socket: %w", err)
	}
	lost := 0
	for _, a := range addrs {
		var frame []byte
		var protocol uint16
		if a.Is4() {
			frame, protocol = arpFrame(l.mac, a), unix.ETH_P_ARP
		} else {
			frame, protocol = advertisementFrame(l.mac, a), unix.ETH_P_IPV6
		}
		to := &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: l.index, Halen: 6}
		copy(to.Addr[:], frame[:6])
		if sendErr := unix.Sendto(fd, frame, 0, to); sendErr != nil {
			lost++
			err = sendErr
		}
	}
	if err != nil {
		return fmt.Errorf("%d of %d announcements could not be sent: %w", lost, len(addrs), err)
	}
	return nil
}

// swap turns a number into network byte order.
func swap(v uint16) uint16 { return v<<8 | v>>8 }

var broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// arpFrame is the Ethernet frame of a gratuitous ARP request (RFC 5227): sender
// and target are the address itself.
func arpFrame(mac net.HardwareAddr, a netip.Addr) []byte {
	b := make([]byte, 0, 60)
	b = append(b, broadcast...)
	b = append(b, mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_ARP)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1) // Ethernet, IPv4, their lengths, request
	b = append(b, mac...)
	b = append(b, a.AsSlice()...)
	b = append(b, make([]byte, 6)...)
	b = append(b, a.AsSlice()...)
	return append(b, make([]byte, 60-len(b))...)
}

// allNodes is the multicast address of every neighbour.
var allNodes = netip.MustParseAddr("ff02::1")

// advertisementFrame is the Ethernet frame of an unsolicited neighbour
// advertisement (RFC 4861) that overrides what the neighbours know.
func advertisementFrame(mac net.HardwareAddr, a netip.Addr) []byte {
	const length = 32 // of the ICMPv6 message
	icmp := make([]byte, 0, length)
	icmp = append(icmp, 136, 0, 0, 0, 0x20, 0, 0, 0) // type, code, checksum, flag "override"
	icmp = append(icmp, a.AsSlice()...)
	icmp = append(icmp, 2, 1) // option: the target's link-layer address
	icmp = append(icmp, mac...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(a, allNodes, icmp))

	b := make([]byte, 0, 14+40+length)
	b = append(b, 0x33, 0x33, 0, 0, 0, 1)
	b = append(b, mac...)
	b = binary.BigEndian.AppendUint16(b, unix.ETH_P_IPV6)
	b = append(b, 0x60, 0, 0, 0, 0, length, unix.IPPROTO_ICMPV6, 255)
	b = append(b, a.AsSlice()...)
	b = append(b, allNodes.AsSlice()...)
	return append(b, icmp...)
}

// checksum is that of an ICMPv6 message with its pseudo header.
func checksum(src, dst netip.Addr, message []byte) uint16 {
	sum := uint32(len(message)) + unix.IPPROTO_ICMPV6 //nolint:gosec // a message has 32 bytes
	for _, part := range [][]byte{src.AsSlice(), dst.AsSlice(), message} {
		for i := 0; i+1 < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
