package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/bench/contender"
	"github.com/eclusa-lb/eclusa/bench/traffic"
)

// bed is a contender in its network, ready to be measured.
type bed struct {
	contender.Contender
	network *contender.Network
	running contender.Running
	dir     string
}

func newBed(ctx context.Context, c contender.Contender, s contender.Setup, dir string) (*bed, error) {
	b := &bed{Contender: c, dir: filepath.Join(dir, c.Name())}
	if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return nil, err
	}
	var err error
	if b.network, err = contender.NewNetwork(); err != nil {
		return nil, err
	}
	if err := b.start(ctx, s); err != nil {
		b.network.Close()
		return nil, err
	}
	return b, nil
}

func (b *bed) start(ctx context.Context, s contender.Setup) error {
	r, err := b.Start(ctx, b.network, s, b.dir)
	if err != nil {
		return fmt.Errorf("start %s: %w", b.Title(), err)
	}
	b.running = r
	return nil
}

// restart starts the contender anew for another setup.
func (b *bed) restart(ctx context.Context, s contender.Setup) error {
	b.running.Stop()
	return b.start(ctx, s)
}

func (b *bed) close() {
	b.running.Stop()
	b.network.Close()
}

// outcome is what a load has led to.
type outcome struct {
	*traffic.Result
	// CPU is the processor time of all that took part: clients, load balancer,
	// nodes and the kernel's threads for the network. EdgeCPU is the load
	// balancer's processes alone.
	CPU, EdgeCPU time.Duration
	// Foreign is the share of the processors that others had.
	Foreign float64
	// Arrived are the datagrams that the nodes have received.
	Arrived int64
	// Resent are the SYNs that client and edge have sent again.
	Resent int64
}

// load makes a load and waits for its end. Targets are set here.
func (b *bed) load(s traffic.Spec, port uint16) (*outcome, error) {
	s.To = b.running.Targets(port)
	p, err := b.client(s)
	if err != nil {
		return nil, err
	}
	defer p.Stop()
	return b.watch(p, func() {})
}

func (b *bed) client(s traffic.Spec) (*contender.Process, error) {
	argument, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	return b.network.Client.StartRole(contender.Role{Name: "load", Argument: argument})
}

// watch waits for the result of a client that runs, and looks at what it costs.
func (b *bed) watch(p *contender.Process, meanwhile func()) (*outcome, error) {
	before := b.usage()
	meanwhile()
	o := &outcome{Result: &traffic.Result{}}
	if err := p.Hear(o.Result); err != nil {
		return nil, err
	}
	after := b.usage()
	o.CPU = after.path - before.path + cpuOf(p.PID())
	o.EdgeCPU = after.edge - before.edge
	o.Arrived = after.arrived - before.arrived
	o.Resent = after.resent - before.resent
	if all := after.machine - before.machine; all > 0 {
		busy := all - (after.idle - before.idle)
		o.Foreign = max(0, (busy-o.CPU).Seconds()/all.Seconds())
	}
	return o, nil
}

// usage is what has been used up to now.
type usage struct {
	path, edge      time.Duration
	machine, idle   time.Duration
	arrived, resent int64
}

func (b *bed) usage() usage {
	var u usage
	for _, pid := range b.running.PIDs() {
		for _, one := range family(pid) {
			u.edge += cpuOf(one)
		}
	}
	u.path = u.edge
	for _, s := range b.network.Servers {
		u.path += cpuOf(s.PID())
	}
	for _, pid := range kernelThreads() {
		u.path += cpuOf(pid)
	}
	u.machine, u.idle = machineTime()
	for _, h := range b.network.Nodes {
		u.arrived += counter(h.PID, "snmp", "Udp", "InDatagrams")
	}
	u.resent = counter(b.network.Client.PID, "netstat", "TcpExt", "TCPSynRetrans") + counter(b.network.Edge.PID, "netstat", "TcpExt", "TCPSynRetrans")
	return u
}

// cpuOf is the processor time of a process, to the nanosecond.
func cpuOf(pid int) time.Duration {
	const schedulerClock = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedulerClock), &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// family is a process with all that descend from it.
func family(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", all[i], all[i]))
		for field := range strings.FieldsSeq(string(children)) {
			if child, err := strconv.Atoi(field); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// kernelThreads are those that work for the network when others are busy.
func kernelThreads() (all []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, _ := os.ReadFile(name)
		if !bytes.HasPrefix(comm, []byte("ksoftirqd/")) {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// machineTime is the time of all processors up to now, and how much of it they
// were idle.
func machineTime() (all, idle time.Duration) {
	const tick = 10 * time.Millisecond
	text, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(text), "\n")
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil || i > 8 { // guests' time is in the users' too
			continue
		}
		all += time.Duration(n) * tick
		if i == 4 || i == 5 {
			idle += time.Duration(n) * tick
		}
	}
	return all, idle
}

// counter reads one of the kernel's counters in the network namespace of a process.
func counter(pid int, file, group, name string) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
	if err != nil {
		return 0
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != group+":" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, n := range names {
			if n == name && i < len(fields) {
				value, _ := strconv.ParseInt(fields[i], 10, 64)
				return value
			}
		}
	}
	return 0
}

// targets are the addresses for a port.
func (b *bed) targets(port uint16) []netip.AddrPort { return b.running.Targets(port) }
