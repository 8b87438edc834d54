package ipam_test

import (
	"errors"
	"math"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/ipam"
	"github.com/eclusa-lb/eclusa/lb"
)

func TestParseRange(t *testing.T) {
	for _, test := range []struct {
		text string
		want string // first-last
		size uint64
	}{
		{"192.0.2.0/24", "192.0.2.1-192.0.2.254", 254},
		{"192.0.2.0/30", "192.0.2.1-192.0.2.2", 2},
		{"192.0.2.0/31", "192.0.2.0-192.0.2.1", 2},
		{"192.0.2.7/32", "192.0.2.7", 1},
		{" 192.0.2.7/32 ", "192.0.2.7", 1},
		{"10.0.0.0/8", "10.0.0.1-10.255.255.254", 1<<24 - 2},
		{"192.0.2.0-192.0.2.255", "192.0.2.0-192.0.2.255", 256},
		{"192.0.2.10 - 192.0.2.20", "192.0.2.10-192.0.2.20", 11},
		{"192.0.2.10-192.0.2.10", "192.0.2.10", 1},
		{"192.0.2.10", "192.0.2.10", 1},
		{"192.0.2.250-192.0.3.5", "192.0.2.250-192.0.3.5", 12},
		{"2001:db8::/64", "2001:db8::1-2001:db8::ffff:ffff:ffff:ffff", math.MaxUint64},
		{"2001:db8::-2001:db8::ffff:ffff:ffff:fffe", "2001:db8::-2001:db8::ffff:ffff:ffff:fffe", math.MaxUint64},
		{"2001:db8::-2001:db8::ffff:ffff:ffff:fffd", "2001:db8::-2001:db8::ffff:ffff:ffff:fffd", math.MaxUint64 - 1},
		{"2001:db8::/120", "2001:db8::1-2001:db8::ff", 255},
		{"2001:db8::/127", "2001:db8::-2001:db8::1", 2},
		{"2001:db8::5/128", "2001:db8::5", 1},
		{"2000::/3", "2000::1-3fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", math.MaxUint64},
		{"2001:db8:0:1::ffff-2001:db8:0:2::1", "2001:db8:0:1::ffff-2001:db8:0:2::1", math.MaxUint64 - 0xffff + 3},
	} {
		r, err := ipam.ParseRange(test.text)
		if err != nil {
			t.Errorf("%s: %v", test.text, err)
			continue
		}
		if r.String() != test.want || r.Size() != test.size {
			t.Errorf("%s: got %s of size %d; want %s of size %d", test.text, r, r.Size(), test.want, test.size)
		}
		if !r.Contains(r.First()) || !r.Contains(r.Last()) || r.Contains(r.First().Prev()) || r.Contains(r.Last().Next()) {
			t.Errorf("%s: does not contain exactly what is from its first to its last address", test.text)
		}
	}
}

func TestParseRangeRefuses(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", `"" must be an IP address; a range is a CIDR such as 192.0.2.0/24, or two addresses such as 192.0.2.10-192.0.2.20`},
		{"web", `"web" must be an IP address; a range is a CIDR such as 192.0.2.0/24, or two addresses such as 192.0.2.10-192.0.2.20`},
		{"192.0.2.1-", `"" must be an IP address; a range is a CIDR such as 192.0.2.0/24, or two addresses such as 192.0.2.10-192.0.2.20`},
		{"192.0.2.1-20", `"20" must be an IP address; a range is a CIDR such as 192.0.2.0/24, or two addresses such as 192.0.2.10-192.0.2.20`},
		{"192.0.2.0/33", `must be a CIDR such as "192.0.2.0/24" or "2001:db8::/64"`},
		{"192.0.2.0/24-192.0.3.0/24", `must be a CIDR such as "192.0.2.0/24" or "2001:db8::/64"`},
		{"192.0.2.5/24", "must have no bits behind its length, 192.0.2.0/24 would be right"},
		{"::ffff:192.0.2.0/120", "must be written as an IPv4 range"},
		{"::ffff:192.0.2.1", `"::ffff:192.0.2.1" must be written as 192.0.2.1`},
		{"fd00::1%eth0", `"fd00::1%eth0" must not have a zone`},
		{"192.0.2.20-192.0.2.10", "must begin with the smaller address, 192.0.2.10-192.0.2.20"},
		{"192.0.2.20-2001:db8::1", "must be two addresses of one family"},
		{"127.0.0.1", "must not include 127.0.0.1, which are loopback addresses"},
		{"126.0.0.0-128.0.0.0", "must not include 127.0.0.0-127.255.255.255, which are loopback addresses"},
		{"0.0.0.0/0", "must not include 0.0.0.1-0.255.255.255, which are unspecified addresses"},
		{"169.254.1.0/24", "must not include 169.254.1.1-169.254.1.254, which are link-local addresses"},
		{"239.0.0.0/24", "must not include 239.0.0.1-239.0.0.254, which are multicast addresses"},
		{"255.255.255.255", "must not include 255.255.255.255, which are broadcast addresses"},
		{"::/0", "must not include ::1, which are loopback addresses"},
		{"fe80::/64", "must not include fe80::1-fe80::ffff:ffff:ffff:ffff, which are link-local addresses"},
		{"ff02::1-ff02::2", "must not include ff02::1-ff02::2, which are multicast addresses"},
	} {
		_, err := ipam.ParseRange(test.text)
		if !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("%s: got %v; want an ErrInvalid", test.text, err)
			continue
		}
		_, got, _ := strings.Cut(err.Error(), ": ")
		if want := test.want + ": invalid"; got != want {
			t.Errorf("%s:\n got %s\nwant %s", test.text, got, want)
		}
	}
}

func TestZeroRange(t *testing.T) {
	var r ipam.Range
	if r.Contains(netip.Addr{}) || r.Contains(netip.MustParseAddr("192.0.2.1")) || r.Size() != 0 || r.String() != "invalid range" {
		t.Errorf("the zero Range contains something: %s of size %d", r, r.Size())
	}
}

func FuzzParseRange(f *testing.F) {
	for _, text := range []string{"192.0.2.0/24", "192.0.2.10-192.0.2.20", "2001:db8::/64", "2001:db8::1", "::/0", "fe80::1%a-b", "10.0.0.0/31", "-", "/", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ipam.ParseRange(text)
		if err != nil {
			if !errors.Is(err, lb.ErrInvalid) || len(err.Error()) > 1000 {
				t.Fatalf("%q: got %v; want an ErrInvalid of bounded length", text, err)
			}
			return
		}
		again, err := ipam.ParseRange(r.String())
		if err != nil || again != r {
			t.Fatalf("%q is %s, which is read as %s, %v", text, r, again, err)
		}
		if r.Size() == 0 || !r.Contains(r.First()) || !r.Contains(r.Last()) || r.Last().Less(r.First()) {
			t.Fatalf("%q is %s of size %d, which does not contain its own ends", text, r, r.Size())
		}
		for _, a := range []netip.Addr{r.First(), r.Last()} {
			if a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.Is4In6() || a.Zone() != "" {
				t.Fatalf("%q includes %s", text, a)
			}
		}
	})
}

func pool(name string, ranges ...string) ipam.Pool {
	p := ipam.Pool{Name: name, AutoAssign: true}
	for _, text := range ranges {
		r, err := ipam.ParseRange(text)
		if err != nil {
			panic(err)
		}
		p.Ranges = append(p.Ranges, r)
	}
	return p
}

func TestOverlaps(t *testing.T) {
	var got []string
	for _, err := range ipam.Overlaps([]ipam.Pool{
		pool("c", "192.0.2.100-192.0.2.200", "2001:db8::/64"),
		pool("a", "192.0.2.0/24", "192.0.2.0/25", "198.51.100.0/24"),
		pool("b", "192.0.2.254", "192.0.2.255", "2001:db8::ffff-2001:db8::1:0", "203.0.113.0/24"),
		pool("d", "192.0.3.0/24", "2001:db8:1::/64"),
	}) {
		if !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("%v is no ErrInvalid", err)
		}
		got = append(got, err.Error())
	}
	want := []string{
		`pools "a" and "c" overlap in 192.0.2.100-192.0.2.200: take it out of one of them: invalid`,
		`pools "a" and "b" overlap in 192.0.2.254: take it out of one of them: invalid`,
		`pools "b" and "c" overlap in 2001:db8::ffff-2001:db8::1:0: take it out of one of them: invalid`,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("overlaps differ (-want +got):\n%s", diff)
	}
}

func TestUsages(t *testing.T) {
	pools := []ipam.Pool{pool("a", "192.0.2.0/28", "192.0.2.8-192.0.2.20", "2001:db8::/64"), pool("b", "198.51.100.0/24"), pool("empty")}
	results := map[string]ipam.Result{
		"1": {Addresses: addrs("192.0.2.1", "2001:db8::1")},
		"2": {Addresses: addrs("192.0.2.1")},
		"3": {Addresses: addrs("203.0.113.1")},
	}
	quarantined := map[netip.Addr]ipam.Quarantine{
		netip.MustParseAddr("192.0.2.1"): {}, netip.MustParseAddr("192.0.2.2"): {}, netip.MustParseAddr("198.51.100.2"): {},
	}
	got := ipam.Usages(pools, results, quarantined)
	want := map[string]ipam.Usage{
		"a":     {IPv4: ipam.Count{Used: 1, Quarantined: 1, Total: 20}, IPv6: ipam.Count{Used: 1, Total: math.MaxUint64}},
		"b":     {IPv4: ipam.Count{Quarantined: 1, Total: 254}},
		"empty": {},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("usage differs (-want +got):\n%s", diff)
	}
	if got, want := got["a"].Sum(), (ipam.Count{Used: 2, Quarantined: 1, Total: math.MaxUint64}); got != want {
		t.Errorf("sum: got %+v; want %+v", got, want)
	}
}
