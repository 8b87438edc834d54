package nftables

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// directFlowCases are about what becomes of single flows.
var directFlowCases = []directCase{
	{"ErrorsReachTheFlowAlone", directErrors},
	{"HalfClosed", directHalfClosed},
	{"SourceRangesOfDatagrams", directNarrowedDatagrams},
	{"TombstonesAtOnce", directTombstones},
	{"CutsInTurns", directCutsInTurns},
	{"CutPortsAgain", directCutPortsAgain},
	{"FlowsChanged", directFlowsChanged},
	{"CountsOfNumbers", directCountsOfNumbers},
	{"CountsBeforeRestart", directCountsBeforeRestart},
	{"CountsOfOwners", directCountsOfOwners},
	{"PortsUsedAgain", directPortsAgain},
	{"AffinityLeavesDraining", directAffinityDraining},
	{"HomesComeBack", directHomesComeBack},
	{"RemovedBeforeRestart", directRemovedBeforeRestart},
	{"RemovedMeanwhile", directRemovedMeanwhile},
	{"RemovedBeforeHandOver", directRemovedBeforeHandOver},
	{"RemovedAmongSets", directRemovedAmongSets},
	{"RemovedBeforeProgramsListen", directRemovedIsNobodys},
	{"SessionsOfOthers", directSessionsOfOthers},
	{"MemberLeftBeforeRestart", directLeftBeforeRestart},
	{"CutBeforeHandOver", directCutBeforeHandOver},
	{"Withdraw", directWithdraw},
}

// icmp is the protocol of the family's control messages.
func (r *directRig) icmp() uint8 {
	if r.family == lb.IPv6 {
		return unix.IPPROTO_ICMPV6
	}
	return unix.IPPROTO_ICMP
}

// icmpTo is a message that a client sends; node is whether the member gets it.
type icmpTo struct {
	to         netip.Addr
	kind, code byte
	node       bool
}

// rawSocket opens a raw socket of a protocol in a namespace.
func (r *directRig) rawSocket(ns netns.NsHandle, p uint8) net.PacketConn {
	r.Helper()
	var c net.PacketConn
	if err := r.within(ns, func() (err error) {
		network, any := "ip4", "0.0.0.0"
		if r.family == lb.IPv6 {
			network, any = "ip6", "::"
		}
		c, err = net.ListenPacket(fmt.Sprintf("%s:%d", network, p), any)
		return err
	}); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { _ = c.Close() })
	return c
}

// quoting is an ICMP message that quotes what a member has sent to a client.
func (m icmpTo) quoting(f lb.Frontend, client netip.AddrPort) []byte {
	quoted := synPacket(netip.AddrPortFrom(f.Addr, f.Port), client, 1)
	b := append([]byte{m.kind, m.code, 0, 0, 0, 0, 5, 0}, quoted...)
	if f.Addr.Is4() { // the kernel does it for ICMPv6
		sum := checksum(b)
		b[2], b[3] = byte(sum>>8), byte(sum)
	}
	return b
}

// sendErrors sends messages that quote a connection, and checks which of them its node
// gets.
func (r *directRig) sendErrors(c *dialled, f lb.Frontend, node int, messages []icmpTo) {
	r.Helper()
	client := c.LocalAddr().(*net.TCPAddr).AddrPort()
	from, at := r.rawSocket(r.client, r.icmp()), r.rawSocket(r.nodes[node], r.icmp())
	for _, m := range messages {
		if _, err := from.WriteTo(m.quoting(f, client), &net.IPAddr{IP: m.to.AsSlice()}); err != nil {
			r.Fatalf("send type %d to %s: %v", m.kind, m.to, err)
		}
	}
	quoted := string(messages[0].quoting(f, client)[8:])
	b := make([]byte, 2000)
	_ = at.SetReadDeadline(time.Now().Add(patience))
	for _, want := range messages {
		for want.node {
			n, _, err := at.ReadFrom(b)
			if err != nil {
				r.Fatalf("the node has not got the message of type %d: %v", want.kind, err)
			}
			if n < 8 || string(b[8:n]) != quoted {
				continue // of somebody else
			}
			if b[0] != want.kind || b[1] != want.code {
				r.Errorf("the node has got a message of type %d, code %d; want %d, %d", b[0], b[1], want.kind, want.code)
			}
			break
		}
	}
}

// directErrors: ICMP errors about what a member has sent reach it, and nothing else
// that looks like them.
func directErrors(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	other := f.Addr.Next() // the nodes have it as well
	messages := []icmpTo{{other, 3, 1, false}, {f.Addr, 8, 0, false}, {f.Addr, 3, 4, true}, {f.Addr, 11, 0, true}, {f.Addr, 12, 0, true}}
	if r.family == lb.IPv6 {
		messages = []icmpTo{{other, 1, 1, false}, {f.Addr, 128, 0, false}, {f.Addr, 2, 0, true}, {f.Addr, 3, 0, true}}
	}
	r.sendErrors(c, f, 0, messages)
}

// expiry matches what nft lists of when an element is forgotten.
var expiry = regexp.MustCompile(`expires (\S+)`)

// expiries returns when the elements of a map will be forgotten.
func (r *directRig) expiries(name string) []time.Duration {
	r.Helper()
	var all []time.Duration
	for _, m := range expiry.FindAllStringSubmatch(listing(r, "nft", "list", "map", "inet", TableName, name+r.suffix()), -1) {
		d, err := time.ParseDuration(strings.TrimRight(m[1], ","))
		if err != nil {
			r.Fatal(err)
		}
		all = append(all, d)
	}
	return all
}

func (r *directRig) suffix() string { return versionOf(r.self()).suffix }

// directHalfClosed: a client that has sent everything reads on, though its node drains,
// and the node learns what size of packets gets through to it.
func directHalfClosed(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	if _, err := io.WriteString(c, "stream\n"); err != nil {
		r.Fatal(err)
	}
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		r.Fatal(err)
	}
	r.state(f, 0, lb.Draining)
	r.mustSet()
	r.eventually("the flow is one that is closing, and known for longer as it goes on", func() bool {
		if _, err := c.in.ReadString('\n'); err != nil {
			r.Fatalf("the client reads on: %v", err)
		}
		all := r.expiries("closing")
		return len(all) == 1 && all[0] > closing*time.Second
	})
	kind := byte(3)
	if r.family == lb.IPv6 {
		kind = 2
	}
	r.sendErrors(c, f, 0, []icmpTo{{f.Addr, kind, 4, true}})
}

// directNarrowedDatagrams: source ranges reach open sessions.
func directNarrowedDatagrams(r *directRig) {
	f := r.add(lb.UDP)
	r.mustSet()
	c := r.dial(f)
	r.mustAsk(c)
	other := netip.PrefixFrom(r.self().Next(), r.self().BitLen())
	r.change(f, func(route *lb.Route) { route.SourceRanges = []netip.Prefix{other} })
	r.mustSet()
	r.eventually("the session has ended", func() bool {
		_, _, err := c.ask(50 * time.Millisecond)
		return err != nil
	})
}

// tombstones counts those of a family.
func (r *directRig) tombstones() int {
	r.Helper()
	return strings.Count(listing(r, "nft", "list", "map", "inet", TableName, "flows"+r.suffix()), "0xefffffff")
}

// directTombstones: when a node dies all of its flows get tombstones, also while
// segments of one come all the time, and stand for a minute however many come.
func directTombstones(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	busy := r.on(0, f).LocalAddr().(*net.TCPAddr).AddrPort()
	for range 10 {
		r.on(0, f)
	}
	had, number := 0, r.numberOf(0)
	r.eachFlow(func(d directFlow) {
		if d.member == number {
			had++
		}
	})
	stop := r.flood(busy, f)
	r.state(f, 0, lb.Dead)
	r.mustSet()
	r.eventually("tombstones stand", func() bool { return r.tombstones() == had })
	if sent := stop(); sent < 100 {
		r.Fatalf("only %d segments came meanwhile", sent)
	}
	for _, line := range strings.Split(listing(r, "nft", "list", "map", "inet", TableName, "flows"+r.suffix()), ",") {
		m := expiry.FindStringSubmatch(line)
		if m == nil || !strings.Contains(line, "0xefffffff") {
			continue
		}
		if left, err := time.ParseDuration(m[1]); err != nil || left > tombstoneFor {
			r.Errorf("a tombstone stands for another %s, %v; want %s at most", left, err, tombstoneFor)
		}
	}
}

// eachFlow reads the flows of the table.
func (r *directRig) eachFlow(f func(directFlow)) {
	r.Helper()
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer s.close()
	if _, err := s.readFlows(f); err != nil {
		r.Fatal(err)
	}
}

// flood sends segments of a client's flow, which are wrong in its node's eyes, until
// stop is called, which tells how many.
func (r *directRig) flood(client netip.AddrPort, f lb.Frontend) (stop func() int) {
	r.Helper()
	var s *raw
	if err := r.within(r.client, func() (err error) { s, err = openRaw(); return err }); err != nil {
		r.Fatal(err)
	}
	b := synPacket(client, netip.AddrPortFrom(f.Addr, f.Port), 1)
	const ack = 0x10
	b[len(b)-tcpLen+13] = ack
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: f.Addr.As16()}
	if f.Addr.Is4() {
		to = &unix.SockaddrInet4{Addr: f.Addr.As4()}
	}
	quit, sent := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-quit:
				sent <- n
				return
			default:
				_ = unix.Sendto(s.fd[versionOf(f.Addr)], b, 0, to)
			}
		}
	}()
	return func() int {
		close(quit)
		defer s.close()
		return <-sent
	}
}

// disturb commits transactions about a table of somebody else until it is stopped.
func (r *directRig) disturb() (stop func()) {
	r.Helper()
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	quit, over := make(chan struct{}), make(chan error, 1)
	go func() {
		defer s.close()
		tick := time.NewTicker(time.Millisecond) // a table is read whole in between, many flows are not
		defer tick.Stop()
		kinds := []uint16{unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE}
		for n := 0; ; n++ {
			select {
			case <-quit:
				if n%2 == 0 {
					over <- nil
					return
				}
			case <-tick.C:
			}
			w := newBatch()
			w.message(kinds[n%2], unix.NLM_F_CREATE, "a table of somebody else", func() { w.text(unix.NFTA_TABLE_NAME, "disturbance") })
			if err := s.commit(w); err != nil {
				over <- err
				return
			}
		}
	}()
	stop = sync.OnceFunc(func() {
		close(quit)
		if err := <-over; err != nil {
			r.Error(err)
		}
	})
	r.Cleanup(stop)
	return stop
}

// directCutsInTurns: a node with many flows dies while others change tables all the
// time. All of its flows are cut, and a Set waits for a few of them only.
func directCutsInTurns(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	const flows = 16 * maxFlowsAtOnce
	number := r.numberOf(0)
	all := make([]element, flows)
	for i := range all {
		all[i] = element{"flows" + r.suffix(), ends{netip.AddrPortFrom(r.self(), uint16(10_000+i)), f}.key(), value{data: string(number.host()), timeout: time.Hour}}
	}
	r.fill(all)
	stop := r.disturb()
	r.state(f, 0, lb.Dead)
	r.mustSet()
	between := 0
	r.eventually("all flows are cut", func() bool {
		r.engine.mu.Lock()
		n := len(r.engine.direct.cuts.all())
		r.engine.mu.Unlock()
		if n > 0 && n < flows {
			between++
		}
		return n == flows
	})
	stop()
	if between == 0 {
		r.Error("the engine was locked until all flows were cut")
	}
	if n := r.tombstones(); n != flows {
		r.Errorf("got %d tombstones; want %d", n, flows)
	}
}

// fill adds elements to the table.
func (r *directRig) fill(all []element) {
	r.Helper()
	s, err := dial()
	if err != nil {
		r.Fatal(err)
	}
	defer s.close()
	w := newBatch()
	w.elements(unix.NFT_MSG_NEWSETELEM, all[0].set, all)
	if err := s.commit(w); err != nil {
		r.Fatal(err)
	}
}

// directPortsAgain: a client that has vanished and comes again with the same port is a
// new one, which a node that drains does not get.
func directPortsAgain(r *directRig) {
	f := r.add(lb.TCP)
	r.mustSet()
	c := r.on(0, f)
	port := c.LocalAddr().(*net.TCPAddr).Port
	if _, err := io.WriteString(c, "vanish\n"); err != nil {
		r.Fatal(err)
	}
	if err := vanish(c.Conn); err != nil {
		r.Fatal(err)
	}
	r.state(f, 0, lb.Draining)
	r.mustSet()
	again, err := r.tryFrom(port, f)
	if err != nil {
		r.Fatal(err)
	}
	if node := r.mustAsk(again); node != "n1" {
		r.Errorf("the new connection went to %s; want n1", node)
	}
}

// vanish closes a connection without a word to the other end.
func vanish(c net.Conn) error {
	s, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	failed := s.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
	})
	return errors.Join(failed, err, c.Close())
}

// directAffinityDraining: a client leaves a node that drains, and comes back to it no
// more.
func directAffinityDraining(r *directRig) { r.leaves(lb.Draining) }

// directHomesComeBack: a packet that was on its way has a client remembered for a node
// that drains, after such clients were forgotten.
func directHomesComeBack(r *directRig) {
	f := r.add(lb.TCP)
	r.change(f, func(route *lb.Route) { route.AffinityFor = time.Hour })
	r.mustSet()
	had := int(r.mustAsk(r.dial(f))[1] - '0')
	number := r.numberOf(had)
	r.state(f, had, lb.Draining)
	r.mustSet()
	forgotten := func() bool { return len(r.expiries("homes")) == 0 }
	r.eventually("the client is forgotten", forgotten)
	key := string(append(tupleKey(f), r.self().AsSlice()...))
	r.fill([]element{{"homes" + r.suffix(), key, value{data: string(number.host()), timeout: time.Hour}}})
	r.eventually("the client is forgotten again", forgotten)
}

// answerStream sends lines, also to a client that has ended its side.
func answerStream(c net.Conn, node int) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		if _, err := fmt.Fprintf(c, "n%d %s\n", node, c.RemoteAddr()); err != nil {
			return
		}
	}
}
