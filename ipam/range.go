package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// Range is an unbroken, not empty range of addresses of one family. The zero
// Range is invalid and contains nothing. Ranges are comparable.
type Range struct {
	first, last netip.Addr
}

// ParseRange reads a CIDR ("192.0.2.0/24"), two addresses that both belong to
// the range ("192.0.2.10-192.0.2.20") or a single address.
//
// Of a CIDR the addresses that a host should not have are left out: the network
// and the broadcast address of an IPv4 prefix shorter than /31, the subnet-router
// anycast address (the first one) of an IPv6 prefix shorter than /127. Whoever
// wants them writes two addresses. Ranges with addresses that no edge would serve
// (loopback, link-local, multicast, 0.0.0.0/8) are refused. Errors are
// lb.ErrInvalid and say what would be right.
func ParseRange(text string) (Range, error) {
	r, err := parseRange(text)
	if err == nil {
		err = r.fault()
	}
	if err != nil {
		return Range{}, fmt.Errorf("range %s: %w: %w", quote(text), err, lb.ErrInvalid)
	}
	return r, nil
}

func parseRange(text string) (Range, error) {
	if strings.Contains(text, "/") {
		return parsePrefix(text)
	}
	from, to, two := strings.Cut(text, "-")
	first, err := parseAddr(from)
	if err != nil {
		return Range{}, err
	}
	if !two {
		return Range{first, first}, nil
	}
	last, err := parseAddr(to)
	if err != nil {
		return Range{}, err
	}
	if first.Is4() != last.Is4() {
		return Range{}, errors.New("must be two addresses of one family")
	}
	if last.Less(first) {
		return Range{}, fmt.Errorf("must begin with the smaller address, %s-%s", last, first)
	}
	return Range{first, last}, nil
}

func parsePrefix(text string) (Range, error) {
	p, err := netip.ParsePrefix(strings.TrimSpace(text))
	switch {
	case err != nil:
		return Range{}, errors.New(`must be a CIDR such as "192.0.2.0/24" or "2001:db8::/64"`)
	case p.Addr().Is4In6():
		return Range{}, errors.New("must be written as an IPv4 range")
	case p != p.Masked():
		return Range{}, fmt.Errorf("must have no bits behind its length, %s would be right", p.Masked())
	}
	r := Range{p.Addr(), lastOf(p)}
	switch {
	case p.Addr().Is4() && p.Bits() < 31:
		r.first, r.last = r.first.Next(), r.last.Prev()
	case p.Addr().Is6() && p.Bits() < 127:
		r.first = r.first.Next()
	}
	return r, nil
}

func parseAddr(text string) (netip.Addr, error) {
	text = strings.TrimSpace(text)
	a, err := netip.ParseAddr(text)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%s must be an IP address; a range is a CIDR such as 192.0.2.0/24, or two addresses such as 192.0.2.10-192.0.2.20", quote(text))
	case a.Zone() != "":
		return netip.Addr{}, fmt.Errorf("%s must not have a zone", quote(text))
	case a.Is4In6():
		return netip.Addr{}, fmt.Errorf("%s must be written as %s", quote(text), a.Unmap())
	}
	return a, nil
}

// unusable are the addresses that no load balancer can have.
var unusable = []struct {
	prefix netip.Prefix
	name   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// fault says which addresses of a range no edge would serve.
func (r Range) fault() error {
	for _, u := range unusable {
		if common, ok := r.intersect(Range{u.prefix.Addr(), lastOf(u.prefix)}); ok {
			return fmt.Errorf("must not include %s, which are %s addresses", common, u.name)
		}
	}
	return nil
}

// lastOf returns the last address of a masked prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// First returns the smallest address of the range.
func (r Range) First() netip.Addr { return r.first }

// Last returns the largest address of the range.
func (r Range) Last() netip.Addr { return r.last }

// Family returns the family of the range's addresses.
func (r Range) Family() lb.Family { return lb.FamilyOf(r.first) }

// Contains reports whether the address is in the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.first.IsValid() && a.BitLen() == r.first.BitLen() && a.Zone() == "" && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0
}

// Size returns the number of addresses; for ranges with more than a uint64 can
// tell, the largest uint64.
func (r Range) Size() uint64 {
	if !r.first.IsValid() {
		return 0
	}
	first, last := r.first.As16(), r.last.As16()
	high := binary.BigEndian.Uint64(last[:8]) - binary.BigEndian.Uint64(first[:8])
	low, borrow := binary.BigEndian.Uint64(last[8:])-binary.BigEndian.Uint64(first[8:]), binary.BigEndian.Uint64(last[8:]) < binary.BigEndian.Uint64(first[8:])
	if borrow {
		high--
	}
	if high > 0 || low == math.MaxUint64 {
		return math.MaxUint64
	}
	return low + 1
}

// String returns the range as "192.0.2.10-192.0.2.20", or as one address.
// ParseRange reads it back.
func (r Range) String() string {
	switch {
	case !r.first.IsValid():
		return "invalid range"
	case r.first == r.last:
		return r.first.String()
	}
	return r.first.String() + "-" + r.last.String()
}

// intersect returns what two ranges have in common.
func (r Range) intersect(o Range) (Range, bool) {
	if !r.first.IsValid() || r.first.BitLen() != o.first.BitLen() {
		return Range{}, false
	}
	common := Range{r.first, r.last}
	if o.first.Compare(common.first) > 0 {
		common.first = o.first
	}
	if o.last.Compare(common.last) < 0 {
		common.last = o.last
	}
	return common, common.first.Compare(common.last) <= 0
}

// merged returns ranges sorted, without invalid ones, those that overlap or
// touch made one.
func merged(ranges []Range) []Range {
	sorted := slices.DeleteFunc(slices.Clone(ranges), func(r Range) bool { return !r.first.IsValid() })
	slices.SortFunc(sorted, func(a, b Range) int {
		return cmp.Or(a.first.Compare(b.first), a.last.Compare(b.last))
	})
	var out []Range
	for _, r := range sorted {
		if n := len(out); n > 0 && out[n-1].first.BitLen() == r.first.BitLen() && (out[n-1].Contains(r.first) || out[n-1].last.Next() == r.first) {
			if out[n-1].last.Less(r.last) {
				out[n-1].last = r.last
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// quote quotes a text of any length for a message of bounded length.
func quote(s string) string {
	const most = 100
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "..."
	}
	return strconv.Quote(s)
}
