package provider

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// crowd makes a simulation of many Services and nodes.
func crowd(t *testing.T, services, nodes int) *simulation {
	s := newSimulation(t)
	for i := range nodes {
		n := testNode(fmt.Sprintf("n%03d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250+1))
		s.stamp(n, i)
		s.world.Nodes = append(s.world.Nodes, n)
	}
	for i := range services {
		svc := testService(fmt.Sprintf("s-%05d", i), int32(10000+i))
		svc.UID = types.UID(fmt.Sprintf("uid-%05d", i))
		svc.CreationTimestamp = metav1.NewTime(epoch.Add(time.Duration(i) * time.Second))
		s.stamp(svc, i)
		s.world.Services = append(s.world.Services, svc)
	}
	p, e := testPool("default", "10.32.0.0/16"), testEdge("e1")
	s.stamp(p, 0)
	s.stamp(e, 0)
	s.world.Pools, s.world.Edges = append(s.world.Pools, p), append(s.world.Edges, e)
	return s
}

// TestNodeDownWritesLittle lets one node of many fail under many Services: the
// edge's status tells, and the Services have nothing to say.
func TestNodeDownWritesLittle(t *testing.T) {
	s := crowd(t, 500, 20)
	s.settle()
	s.world.Now = s.world.Now.Add(time.Hour)
	s.sick["n007"] = healthcheck.Down
	writes := 0
	for range 5 {
		d := s.decider.decide(s.world)
		writes += len(d.Writes)
		for target, w := range d.Writes {
			s.write(target, w)
		}
		for name, w := range d.Wanted {
			s.world.Fleet[name] = s.serve(name, w)
		}
		s.world.Now = s.world.Now.Add(10 * time.Second)
	}
	if writes > 10 {
		t.Errorf("one node down cost %d writes to the API server, want at most 10", writes)
	}
	if sick := s.world.Edges[0].Status.SickNodes; len(sick) != 1 || sick[0].Node != "n007" {
		t.Errorf("sick nodes of the edge are %+v, want n007", sick)
	}
}

// TestNodeEventIsOneChange removes a node under many Services: nothing but the
// node is different for the edge.
func TestNodeEventIsOneChange(t *testing.T) {
	s := crowd(t, 500, 20)
	s.settle()
	before := s.wanted["e1"].Config
	s.world.Nodes = s.world.Nodes[1:]
	s.round()
	after := s.wanted["e1"].Config
	if d := compare(before, after); d.loadBalancers != (counts{}) {
		t.Errorf("load balancers changed with a node: %v", d)
	}
	same(t, "nodes", len(after.Nodes), 19)
	same(t, "revision", after.Revision, before.Revision+1)
}

func BenchmarkRound(b *testing.B) {
	var s *simulation
	t := &testing.T{}
	s = crowd(t, 5000, 500)
	for range 4 {
		d := s.decider.decide(s.world)
		for target, w := range d.Writes {
			s.write(target, w)
		}
		for name, w := range d.Wanted {
			st := EdgeState{Name: name, Connected: true, Known: true, Holds: w.Config, Status: lb.Status{
				Revision: w.Config.Revision, Durable: true, LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{}, Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"http:10256/healthz": {}},
			}}
			for uid := range w.Config.LoadBalancers {
				st.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: true}
			}
			for node := range w.Config.Nodes {
				st.Status.Checks["http:10256/healthz"][node] = lb.MemberStatus{State: healthcheck.Up}
			}
			s.world.Fleet[name] = st
		}
		s.world.Now = s.world.Now.Add(10 * time.Second)
	}
	if d := s.decider.decide(s.world); len(d.Writes) > 2 {
		b.Fatalf("there are still %d writes", len(d.Writes))
	}
	b.ReportAllocs()
	for b.Loop() {
		s.decider.decide(s.world)
	}
}
