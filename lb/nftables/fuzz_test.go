package nftables

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// FuzzTable checks that whatever table there is, each of its routes is refused
// before the kernel sees it, or the kernel takes it. The kernel is only asked, in a
// network namespace of its own.
func FuzzTable(f *testing.F) {
	f.Add([]byte("a table of no special kind, with some bytes in it and a few more of them to come"))
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20})
	f.Add([]byte(strings.Repeat("\xff\x00\x7f\x80\x01", 60)))
	f.Fuzz(func(t *testing.T, data []byte) {
		checkTable(t, randomTable(&source{data}))
	})
}

func checkTable(t *testing.T, table lb.Table) {
	s, err := elsewhere()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("make a network namespace: %v", err)
		}
		t.Skipf("a network namespace is needed: %v", err)
	}
	e := New(Options{})
	e.rules = s
	e.numbers.recall(nil)
	before := e.plan(table, nil, time.Unix(0, 0))
	for frontend, err := range before.refused {
		if err == nil || !strings.Contains(err.Error(), frontend.String()) {
			t.Errorf("refusal of %s: got %v; want it named", frontend, err)
		}
	}
	if len(before.refused)+len(before.next.routes) != len(table.Routes) {
		t.Errorf("%d refused and %d served of %d", len(before.refused), len(before.next.routes), len(table.Routes))
	}
	w, err := e.difference(before.next, newPresent(), true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.try(w); err != nil {
		t.Errorf("the kernel refuses what the engine does not: %v\n%+v", err, table)
	}
}

// elsewhere is a socket to a network namespace that nobody uses, one for all: the
// kernel takes its time to end such.
var elsewhere = sync.OnceValues(func() (*socket, error) {
	type result struct {
		s   *socket
		err error
	}
	made := make(chan result)
	go func() {
		// The thread ends with the goroutine, and the namespace with the process.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		var s *socket
		if err == nil {
			s, err = dial()
		}
		made <- result{s, err}
	}()
	r := <-made
	return r.s, r.err
})

// source is where a random table comes from.
type source struct{ b []byte }

func (s *source) next(n int) int {
	if len(s.b) == 0 || n <= 1 {
		return 0
	}
	v := int(s.b[0])
	s.b = s.b[1:]
	return v % n
}

func (s *source) addr() netip.Addr {
	var b [16]byte
	if s.next(2) == 0 {
		binary.BigEndian.PutUint32(b[:], 0xc6120000|uint32(s.next(256))<<8|uint32(s.next(7)))
		if s.next(20) == 19 {
			return netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		return netip.AddrFrom4([4]byte(b[:4]))
	}
	copy(b[:], "\x20\x01\x0d\xb8")
	b[14], b[15] = byte(s.next(256)), byte(s.next(7))
	if s.next(20) == 19 {
		return netip.IPv6Unspecified()
	}
	return netip.AddrFrom16(b)
}

func randomTable(s *source) lb.Table {
	t := lb.Table{Routes: make(map[lb.Frontend]lb.Route), Groups: make(map[lb.GroupID]lb.Group)}
	pick := func(all ...time.Duration) time.Duration { return all[s.next(len(all))] }
	for i := 0; len(s.b) > 0 && i < 200; i++ {
		f := lb.Frontend{Addr: s.addr(), Port: uint16(s.next(5)), Protocol: []lb.Protocol{lb.TCP, lb.UDP, lb.SCTP}[s.next(3)]}
		id := lb.GroupID{Cluster: "c", Name: fmt.Sprint(s.next(4)), Family: lb.FamilyOf(f.Addr)}
		r := lb.Route{
			Owner: lb.Owner{Cluster: "c", UID: lb.UID(fmt.Sprint(s.next(9)))}, Group: id,
			Name: []string{"default/web", `quo"te`, strings.Repeat("long", 40), "new\nline"}[s.next(4)], TargetPort: uint16(s.next(3)),
			Algorithm:     []lb.Algorithm{"", lb.RoundRobin, lb.SourceHash, lb.LeastConnections}[s.next(4)],
			ProxyProtocol: []lb.ProxyProtocol{lb.ProxyOff, lb.ProxyV2}[s.next(9)/8],
			AffinityFor:   pick(0, time.Second, time.Hour, 24*time.Hour), IdleTimeout: pick(0, time.Millisecond, time.Minute, 100*time.Hour),
			DrainTimeout: pick(0, time.Minute), MaxConnections: []int{0, 1, 1 << 30}[s.next(3)], ResetDead: s.next(2) == 0,
		}
		for range s.next(5) {
			a := s.addr()
			r.SourceRanges = append(r.SourceRanges, netip.PrefixFrom(a, s.next(a.BitLen()+1)))
		}
		t.Routes[f] = r
		g := lb.Group{}
		for j := range s.next(6) {
			g.Backends = append(g.Backends, lb.Backend{
				Node: lb.NodeName(fmt.Sprint(j)), Addr: s.addr(), Weight: 1 + s.next(256)*4, State: lb.BackendState(s.next(3)),
			})
		}
		t.Groups[id] = g
	}
	return t
}
