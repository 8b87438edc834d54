package lbtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// patience is how long a case waits for what must happen soon.
	patience = 10 * time.Second
	// prompt is the time within which a client must learn that it is refused.
	prompt = time.Second
	// targetPort is the port of members.
	targetPort = 31080
)

// rig is what one case works with.
type rig struct {
	testing.TB
	net    Network
	engine lb.Engine
	spare  func() lb.Engine // makes another one
	family lb.Family
	proto  lb.Protocol
	lacks  []Trait
	done   chan struct{} // closed when the case is over

	mu       sync.Mutex
	services []*service
	started  []*node
}

// service is a route with its group, as a case changes it between Sets.
type service struct {
	lb.Frontend
	route    lb.Route
	backends []lb.Backend
}

// service adds a service with its own frontend and the members as backends.
func (r *rig) service(members ...*node) *service {
	f := r.net.Frontend(r.proto, r.family)
	return r.serviceAt(f, members...)
}

func (r *rig) serviceAt(f lb.Frontend, members ...*node) *service {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &service{Frontend: f}
	name := fmt.Sprintf("s%d", len(r.services))
	s.route = lb.Route{
		Owner:        lb.Owner{Cluster: "c", UID: lb.UID(name)},
		Name:         "test/" + name,
		Group:        lb.GroupID{Cluster: "c", Name: name, Family: lb.FamilyOf(f.Addr)},
		TargetPort:   targetPort,
		Algorithm:    lb.RoundRobin,
		IdleTimeout:  time.Hour,
		DrainTimeout: time.Hour,
		ResetDead:    true,
	}
	for _, m := range members {
		s.backends = append(s.backends, lb.Backend{Node: m.node, Addr: m.addr, Weight: 1, Check: "check"})
	}
	r.services = append(r.services, s)
	return s
}

// has tells whether the engine has the trait.
func (r *rig) has(t Trait) bool { return !slices.Contains(r.lacks, t) }

// remove takes the service out of the next table.
func (r *rig) remove(s *service) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.services = slices.DeleteFunc(r.services, func(o *service) bool { return o == s })
}

// backend returns the service's backend of a member, to be changed.
func (s *service) backend(m *node) *lb.Backend {
	i := slices.IndexFunc(s.backends, func(b lb.Backend) bool { return b.Node == m.node })
	return &s.backends[i]
}

func (s *service) without(m *node) {
	s.backends = slices.DeleteFunc(slices.Clone(s.backends), func(b lb.Backend) bool { return b.Node == m.node })
}

func (r *rig) table() lb.Table {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := lb.Table{Routes: map[lb.Frontend]lb.Route{}, Groups: map[lb.GroupID]lb.Group{}}
	for _, s := range r.services {
		t.Routes[s.Frontend] = s.route
		b := slices.Clone(s.backends)
		slices.SortFunc(b, func(a, b lb.Backend) int { return strings.Compare(string(a.Node), string(b.Node)) })
		t.Groups[s.route.Group] = lb.Group{Backends: b}
	}
	return t
}

// set sets the table of all services, all of which must be served.
func (r *rig) set() {
	r.Helper()
	if refused := r.trySet(); len(refused) > 0 {
		r.Fatalf("Set: got refused %v; want none", refused)
	}
}

func (r *rig) trySet() map[lb.Frontend]error {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	refused, err := r.engine.Set(ctx, r.table())
	if err != nil {
		r.Fatalf("Set: %v", err)
	}
	return refused
}

// node is a running member.
type node struct {
	node lb.NodeName
	addr netip.Addr
	seen chan string // what its handler reports
}

// handler serves one connection of a member.
type handler func(m *node, c net.Conn)

// members starts members that serve TCP connections with h, or datagrams by
// answering with their name and what they got.
func (r *rig) members(n int, h handler) []*node {
	r.Helper()
	return r.membersOf(r.family, n, h)
}

// membersOf is members of another family than that of the case.
func (r *rig) membersOf(f lb.Family, n int, h handler) []*node {
	r.Helper()
	if have := r.net.Addresses(f); have < n {
		r.Skipf("%d members of their own addresses are needed and this network has %d of %s; the run in namespaces covers it", n, have, f)
	}
	all := make([]*node, n)
	for i := range all {
		all[i] = &node{node: lb.NodeName(fmt.Sprintf("n%d", i)), addr: r.net.Member(f), seen: make(chan string, 1000)}
		r.run(all[i], h)
	}
	r.started = append(r.started, all...)
	return all
}

// idleMember returns a member on which nothing listens.
func (r *rig) idleMember(name lb.NodeName) *node {
	return &node{node: name, addr: r.net.Member(r.family), seen: make(chan string, 1000)}
}

// run starts the member's servers and returns what stops them.
func (r *rig) run(m *node, h handler) (stop func()) {
	r.Helper()
	at := netip.AddrPortFrom(m.addr, targetPort)
	if r.proto == lb.UDP {
		p, err := r.net.ListenPacket(at)
		if err != nil {
			r.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() { servePackets(m, p) })
		stop = sync.OnceFunc(func() { p.Close(); wg.Wait() })
	} else {
		l, err := r.net.Listen(at)
		if err != nil {
			r.Fatal(err)
		}
		s := &streamServer{l: l, open: map[net.Conn]bool{}}
		s.wg.Go(func() { s.serve(m, h) })
		stop = sync.OnceFunc(s.stop)
	}
	r.Cleanup(stop)
	return stop
}

// servePackets answers each datagram with the member's name, the sender's port as
// it sees it, and the payload.
func servePackets(m *node, p net.PacketConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := p.ReadFrom(b)
		if err != nil {
			return
		}
		select {
		case m.seen <- from.String():
		default:
		}
		payload := b[:n]
		if n < 1000 {
			payload = []byte(fmt.Sprintf("%s %s", m.node, b[:n]))
		}
		_, _ = p.WriteTo(payload, from)
	}
}

type streamServer struct {
	l  net.Listener
	wg sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool
}

func (s *streamServer) serve(m *node, h handler) {
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.open[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			defer func() {
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
				c.Close()
			}()
			h(m, c)
		})
	}
}

func (s *streamServer) stop() {
	s.l.Close()
	s.mu.Lock()
	for c := range maps.Clone(s.open) {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// greet tells the member's name at once and then echoes.
func greet(m *node, c net.Conn) {
	if _, err := fmt.Fprintf(c, "%s\n", m.node); err != nil {
		return
	}
	_, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
}

// client is a client's connection to a service.
type client struct {
	net.Conn
	r    *rig
	node lb.NodeName // the member that greeted it
}

// connect opens a connection to the service and learns which member it got.
func (r *rig) connect(s *service) *client {
	r.Helper()
	c, err := r.tryConnect(s, netip.Addr{})
	if err != nil {
		r.Fatalf("connect to %s: %v", s.Frontend, err)
	}
	return c
}

func (r *rig) tryConnect(s *service, from netip.Addr) (*client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := r.net.Dial(ctx, from, s.Frontend)
	if err != nil {
		return nil, err
	}
	c := &client{Conn: conn, r: r}
	r.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if s.Protocol == lb.UDP {
		err = c.ask("hello")
	} else {
		var line string
		line, err = readLine(conn)
		c.node = lb.NodeName(line)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// readLine reads up to a newline and nothing beyond it.
func readLine(c io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, b); err != nil {
			return "", err
		}
		if b[0] == '\n' {
			return string(line), nil
		}
		line = append(line, b[0])
	}
}

// ask sends a text through the member and checks that it comes back. For UDP it
// learns the member.
func (c *client) ask(text string) error { return c.askWithin(patience, text) }

func (c *client) askWithin(d time.Duration, text string) error {
	_ = c.SetDeadline(time.Now().Add(d))
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	b := make([]byte, 1<<16)
	n := 0
	var err error
	if c.LocalAddr().Network() == "udp" {
		n, err = c.Read(b)
		node, rest, _ := strings.Cut(string(b[:n]), " ")
		if err == nil && rest != text {
			err = fmt.Errorf("got answer %q; want the node's name and %q", b[:n], text)
		}
		c.node = lb.NodeName(node)
		return err
	}
	n, err = io.ReadFull(c, b[:len(text)])
	if err == nil && string(b[:n]) != text {
		err = fmt.Errorf("got echo %q; want %q", b[:n], text)
	}
	return err
}

// mustAsk is ask for connections that must go on.
func (c *client) mustAsk(why string) {
	c.r.Helper()
	if err := c.ask(why); err != nil {
		c.r.Errorf("connection through %s: %v; want it to go on: %s", c.node, err, why)
	}
}

// ended waits until the connection ends and returns how: io.EOF, or a reset.
func (c *client) ended() error {
	c.r.Helper()
	_ = c.SetDeadline(time.Now().Add(patience))
	for b := make([]byte, 4096); ; {
		if _, err := c.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			c.r.Errorf("connection through %s: still open after %s; want it ended", c.node, patience)
			return err
		} else if err != nil {
			return err
		}
	}
}

// spread counts the members of n new connections, each closed at once.
func (r *rig) spread(s *service, n int) map[lb.NodeName]int {
	r.Helper()
	got := map[lb.NodeName]int{}
	for range n {
		c := r.connect(s)
		got[c.node]++
		c.Close()
	}
	return got
}

// refused checks that a new client is turned away promptly.
func (r *rig) refused(s *service, from netip.Addr, why string) {
	r.Helper()
	start := time.Now()
	c, err := r.tryConnect(s, from)
	if err == nil {
		r.Errorf("client of %s is served by %s; want it refused: %s", s.Frontend, c.node, why)
		c.Close()
		return
	}
	if took := time.Since(start); took > prompt {
		r.Errorf("client of %s is refused after %s; want at most %s: %s", s.Frontend, took, prompt, why)
	}
}

// eventually polls until ok is true.
func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	if !poll(ok) {
		r.Fatalf("after %s still not: %s", patience, what)
	}
}

func poll(ok func() bool) bool {
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}

// counters returns the counters of the service.
func (r *rig) counters(s *service) lb.RouteCounters {
	for _, c := range r.engine.Counters() {
		if c.Frontend == s.Frontend && c.Owner == s.route.Owner {
			return c
		}
	}
	return lb.RouteCounters{}
}

// pause lets time pass where the passing of time is the point: a client's pace.
func pause(d time.Duration) { <-time.After(d) }

// usage is what a case may not leave behind.
type usage struct{ goroutines, files int }

func measure() usage {
	entries, _ := os.ReadDir("/proc/self/fd")
	return usage{runtime.NumGoroutine(), len(entries)}
}

// checkLeaks compares with what was there before the case.
func checkLeaks(t testing.TB, before usage) {
	t.Helper()
	var now usage
	if poll(func() bool {
		now = measure()
		return now.goroutines <= before.goroutines && now.files <= before.files
	}) {
		return
	}
	if now.goroutines > before.goroutines {
		stacks := make([]byte, 1<<16)
		t.Errorf("left behind: got %d goroutines; want %d\n%s", now.goroutines, before.goroutines, stacks[:runtime.Stack(stacks, true)])
	}
	if now.files > before.files {
		t.Errorf("left behind: got %d descriptors; want %d: %s", now.files, before.files, descriptors())
	}
}

// descriptors lists the descriptors of the process.
func descriptors() []string {
	entries, _ := os.ReadDir("/proc/self/fd")
	var all []string
	for _, e := range entries {
		to, _ := os.Readlink("/proc/self/fd/" + e.Name())
		all = append(all, e.Name()+" "+to)
	}
	return all
}
