package nftables

import (
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestCountingCost measures what it costs to count bytes by route and member, per
// packet, against not counting and against connection tracking's own accounting.
// It takes the machine for itself, so it runs only if ECLUSA_COUNTING_COST is set.
func TestCountingCost(t *testing.T) {
	if os.Getenv("ECLUSA_COUNTING_COST") == "" {
		t.Skip("ECLUSA_COUNTING_COST is not set: it measures, and wants a quiet machine")
	}
	lbtest.InNamespaces(t, func(n lbtest.Network) {
		for _, f := range []lb.Family{lb.IPv4, lb.IPv6} {
			t.Run(string(f), func(t *testing.T) { countingCost(newBench(t, n, f)) })
		}
	})
}

func countingCost(b *bench) {
	const rounds, packets = 25, 40_000
	m := b.net.Member(b.family)
	sink, err := b.net.ListenPacket(netip.AddrPortFrom(m, targetPort))
	if err != nil {
		b.Fatal(err)
	}
	defer sink.Close() // nobody reads: the node drops what does not fit
	f := b.add(lb.UDP, m)
	b.set()
	// The keeper would restore the rule.
	if err := b.engine.Shutdown(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.engine = New(Options{})
	var counting []string
	for _, line := range strings.Split(run(b, "nft", "list", "chain", "inet", TableName, "accounting"), "\n") {
		if strings.HasSuffix(line, "accept") {
			counting = append(counting, "add rule inet "+TableName+" accounting "+strings.TrimSpace(line))
		}
	}
	accounting := func(on string) {
		if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_acct", []byte(on), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	variants := map[string]func(){
		"plain":  func() { run(b, "nft", "flush", "chain", "inet", TableName, "accounting") },
		"counts": func() { run(b, "nft", strings.Join(counting, "; ")) },
		"acct": func() {
			run(b, "nft", "flush", "chain", "inet", TableName, "accounting")
			accounting("1")
		},
	}
	took := make(map[string][]float64)
	for i := range rounds {
		for j := range 3 {
			name := []string{"plain", "counts", "acct"}[(i+j)%3]
			variants["plain"]()
			accounting("0")
			variants[name]()
			took[name] = append(took[name], b.flood(f, packets))
		}
	}
	median := func(name string) float64 {
		slices.Sort(took[name])
		return took[name][len(took[name])/2]
	}
	plain := median("plain")
	for _, name := range []string{"counts", "acct"} {
		with := median(name)
		b.Logf("%s: %.0f ns a packet with %s, %.0f ns without: %.0f ns, %.1f %%", b.family, with, name, plain, with-plain, 100*(with/plain-1))
	}
}

// flood sends packets of a new session as fast as they go, which on a veth is as
// fast as the whole way to the node's socket takes, and returns how many nanoseconds
// each took.
func (b *bench) flood(f lb.Frontend, packets int) float64 {
	c, err := b.net.Dial(b.Context(), netip.Addr{}, f)
	if err != nil {
		b.Fatal(err)
	}
	// What Go polls would wake a thread with every packet.
	file, err := c.(*net.UDPConn).File()
	if err != nil {
		b.Fatal(err)
	}
	defer file.Close()
	_ = c.Close()
	fd, payload := int(file.Fd()), make([]byte, 64)
	start := time.Now()
	for range packets {
		if _, err := unix.Write(fd, payload); err != nil {
			b.Fatal(err)
		}
	}
	took := time.Since(start)
	return float64(took.Nanoseconds()) / float64(packets)
}
