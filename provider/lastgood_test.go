package provider

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// tiny makes the edge one that knows nothing but the simplest.
func (r *rig) tiny() {
	r.edges["a"].SetInfo(lb.Info{Name: "edge-1", Engine: "tiny", Version: "v0", Schema: lb.Schema,
		Capabilities: []lb.Capability{lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin, lb.CapTCP}})
}

// altered returns the configuration with one load balancer changed.
func altered(c lb.Config, uid lb.UID, change func(*lb.LoadBalancer)) lb.Config {
	l := c.LoadBalancers[uid]
	change(&l)
	c.LoadBalancers[uid] = l
	return c
}

func sourceHash(l *lb.LoadBalancer) { l.Algorithm = lb.SourceHash }

func only(node int) map[lb.NodeName]lb.Member {
	return map[lb.NodeName]lb.Member{lb.NodeName(fmt.Sprintf("node-%03d", node)): {}}
}

// TestLastGoodFollowsPods moves the pods and the selected nodes of a load balancer
// whose newest version an edge cannot serve.
func TestLastGoodFollowsPods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.tiny()
		on := func(revision uint64, node int, more ...func(*lb.LoadBalancer)) lb.Config {
			c := config(revision, 3, 3)
			c.Pools["selected"] = only(node)
			return altered(c, uid(1), func(l *lb.LoadBalancer) {
				l.Pool, l.Members = "selected", only(node)
				for _, f := range more {
					f(l)
				}
			})
		}
		r.set("a", on(1, 0))
		r.settle(0)
		r.set("a", on(2, 0, sourceHash))
		r.settle(soon)
		r.holds("a", on(2, 0))
		r.set("a", on(3, 1, sourceHash))
		r.settle(soon)
		r.holds("a", on(3, 1))
		// The node where they were goes, and the Service is made right again.
		next, want := on(4, 2, sourceHash), on(4, 2)
		delete(next.Nodes, "node-000")
		delete(want.Nodes, "node-000")
		delete(next.Pools["all"], "node-000")
		delete(want.Pools["all"], "node-000")
		r.set("a", next)
		r.settle(soon)
		r.holds("a", want)
		r.set("a", on(5, 2))
		if st := r.settle(soon); len(st.Withheld) != 0 {
			t.Errorf("withheld are %v, want none", st.Withheld)
		}
		r.holds("a", on(5, 2))
	})
}

// TestLastGoodShrinks takes one of two addresses from a load balancer whose newest
// version an edge cannot serve: it goes on serving the other.
func TestLastGoodShrinks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.tiny()
		r.set("a", altered(config(1, 3, 1), uid(1), func(l *lb.LoadBalancer) {
			l.Addresses = append(l.Addresses, netip.MustParseAddr("2001:db8::1"))
		}))
		r.settle(0)
		r.set("a", altered(config(2, 3, 1), uid(1), sourceHash))
		r.settle(soon)
		r.holds("a", config(2, 3, 1))
	})
}

// TestLastGoodGivesPortsUp has another load balancer take a port that the newest
// version of one does without, which the edge cannot serve.
func TestLastGoodGivesPortsUp(t *testing.T) {
	listeners := func(ports ...uint16) func(*lb.LoadBalancer) {
		return func(l *lb.LoadBalancer) {
			l.Listeners = nil
			for _, p := range ports {
				l.Listeners = append(l.Listeners, lb.Listener{Protocol: lb.TCP, Port: p, TargetPort: 30000 + p})
			}
		}
	}
	shared := config(0, 3, 1).LoadBalancers[uid(1)].Addresses
	share := func(l *lb.LoadBalancer) { l.Addresses = shared }
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		r.tiny()
		r.set("a", altered(config(1, 3, 1), uid(1), listeners(80, 90)))
		r.settle(0)
		newest := func(revision uint64) lb.Config {
			c := altered(config(revision, 3, 1), uid(1), listeners(81, 91))
			for i, before := range []uint16{30080, 30090} { // the node ports stay the Service's
				c.LoadBalancers[uid(1)].Listeners[i].TargetPort = before
			}
			return altered(altered(c, uid(1), sourceHash), uid(2), share)
		}
		r.set("a", newest(2))
		r.settle(soon)
		r.holds("a", altered(altered(config(2, 3, 1), uid(1), listeners(90)), uid(2), share))
		r.set("a", altered(newest(3), uid(2), listeners(80, 90)))
		r.settle(soon)
		want := altered(altered(config(3, 3, 1), uid(2), share), uid(2), listeners(80, 90))
		delete(want.LoadBalancers, uid(1))
		r.holds("a", want)
	})
}

// TestLastGoodIsRepaired has an edge lose a load balancer that goes on as it was, and
// with it the pool that nobody else uses.
func TestLastGoodIsRepaired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		before := func(revision uint64) lb.Config {
			c := config(revision, 3, 3)
			c.Pools["selected"] = only(0)
			return altered(c, uid(1), func(l *lb.LoadBalancer) { l.Pool = "selected" })
		}
		r.set("a", before(1))
		r.settle(0)
		next := config(2, 3, 3)
		delete(next.LoadBalancers, uid(1))
		r.set("a", next, keeping(uid(1)))
		r.settle(soon)
		r.holds("a", before(2))
		for range 2 {
			r.edges["a"].LoseState()
			r.settle(soon)
			r.holds("a", before(2))
		}
	})
}

// TestLastGoodOverRestart refuses a Service with policy Local and a node selector and
// starts anew: edges go on with what they have, and follow its pods and nodes.
func TestLastGoodOverRestart(t *testing.T) {
	labelled := func(name, address, role string) *v1.Node {
		n := testNode(name, address)
		n.Labels = map[string]string{"role": role}
		return n
	}
	s := scene(t, []string{"e1", "e2"})
	s.world.Nodes = append(s.world.Nodes, labelled("w1", "10.0.1.1", "web"), labelled("w2", "10.0.1.2", "web"))
	place := func(nodes ...string) {
		s.slices["default/a"] = []*discoveryv1.EndpointSlice{testSlice("a", nodes...)}
	}
	place("w1", "n1")
	s.create(testService("a", 30080, annotated(AnnotationNodeSelector, "role=web"), func(svc *v1.Service) {
		svc.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicyLocal
		svc.Spec.HealthCheckNodePort = 31000
	}))
	s.settle()
	const pool = AllNodes + " with role=web"
	held := func(what, members, nodes string) {
		t.Helper()
		s.settle()
		for _, edge := range []string{"e1", "e2"} {
			c := s.held[edge].Holds
			l := c.LoadBalancers["uid-a"]
			same(t, what+": members on "+edge, sortedNames(l.Members), members)
			same(t, what+": pool "+string(l.Pool)+" on "+edge, sortedNames(c.Pools[pool]), nodes)
		}
	}
	held("served", "[w1]", "[w1 w2]")
	s.editAt(0, badRange)
	held("refused", "[w1]", "[w1 w2]")
	s.restart()
	held("after a restart", "[w1]", "[w1 w2]")
	place("w2")
	held("the pod has moved", "[w2]", "[w1 w2]")
	s.world.Nodes = append(s.world.Nodes[:2:2], labelled("w3", "10.0.1.3", "web"))
	place("w3")
	held("the nodes are replaced", "[w3]", "[w1 w3]")
	s.editAt(0, func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = nil })
	held("right again", "[w3]", "[w1 w3]")
	same(t, "programmed", says(s.world.Services[0], ConditionProgrammed), "True Programmed")
}

// TestLastGoodKeepsNoOthersAddress asks an edge to keep a load balancer of which one
// address is not its own any more.
func TestLastGoodKeepsNoOthersAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, "a")
		more := netip.MustParseAddr("2001:db8::1")
		r.set("a", altered(config(1, 3, 1), uid(1), func(l *lb.LoadBalancer) { l.Addresses = append(l.Addresses, more) }))
		r.settle(0)
		next := altered(config(2, 3, 1), uid(2), func(l *lb.LoadBalancer) { l.Addresses = append(l.Addresses, more) })
		want := altered(config(2, 3, 1), uid(2), func(l *lb.LoadBalancer) { l.Addresses = append(l.Addresses, more) })
		delete(next.LoadBalancers, uid(1))
		r.set("a", next, keeping(uid(1)))
		r.settle(soon)
		r.holds("a", want)
	})
}

// What was asked for before does not go on to node ports that the Service has given
// back: Kubernetes may have given them to another one.
func TestFreedNodePortIsLeft(t *testing.T) {
	for _, restart := range []bool{false, true} {
		s := shareOne(t, []string{"e"}, onPorts("web", 80, 443))
		same(t, "ports at first", s.on("e", "web"), "80 443")
		s.edit("web", func(svc *v1.Service) {
			svc.Spec.Ports[0].NodePort = 31999
			unservable(svc)
		})
		if restart {
			s.restart()
		}
		s.settle()
		same(t, "ports of which the node port is the Service's still", s.on("e", "web"), "443")
	}
}

// TestLastGoodKeepsItsFamilies withholds from an edge what is to be forwarded another
// way: the families of members are of the way that the edge goes on with.
func TestLastGoodKeepsItsFamilies(t *testing.T) {
	nat := config(1, 1, 1).LoadBalancers[uid(0)]
	nat.Addresses = append(nat.Addresses, netip.MustParseAddr("2001:db8::1"))
	nat.MemberFamilies = []lb.Family{lb.IPv4}
	direct := nat
	direct.Forwarding, direct.MemberFamilies = lb.ForwardDirect, nil
	hashed := nat
	hashed.Algorithm = lb.SourceHash
	of := func(l lb.LoadBalancer) lb.Config {
		c := config(1, 0, 1)
		c.LoadBalancers[uid(0)] = l
		return c
	}
	able := []lb.Capability{lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin, lb.CapTCP}
	for _, tt := range []struct {
		name          string
		known, newest lb.LoadBalancer
		can           lb.Capability
	}{
		{"from NAT to direct", nat, direct, lb.CapFamilyTranslation},
		{"from direct to NAT", direct, hashed, lb.CapDirect},
	} {
		w := Wanted{Config: of(tt.newest), NodePorts: map[lb.UID][]uint16{uid(0): {30080}}}
		got, withheld, _ := compose(w, lb.Info{Capabilities: append(able, tt.can)}, of(tt.known))
		if len(withheld) != 1 {
			t.Errorf("%s: withheld are %v; want the newest version", tt.name, withheld)
		}
		same(t, tt.name, got.LoadBalancers[uid(0)], tt.known)
	}
}

// TestPortOfLastGoodIsGivenUp has another Service want a port that the newest version
// of one does without, which edges cannot serve: they give it up where they listen.
func TestPortOfLastGoodIsGivenUp(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("x", 80, 443), ofNamespace("other", onPorts("y", 8080)))
	s.edit("x", func(svc *v1.Service) {
		svc.Spec.Ports[1].Port = 444                               // and the node port stays
		annotated(AnnotationAlgorithm, string(lb.SourceHash))(svc) // which edges here cannot do
	})
	s.settle()
	same(t, "ports of x as before", s.on("e1", "x"), "80 443")

	pause := func(paused bool) {
		e := s.world.Edges[1].DeepCopy()
		e.Spec.Paused = paused
		s.stamp(e, 1)
		s.world.Edges = []*v1alpha1.Edge{s.world.Edges[0], e}
	}
	s.lost["e2"] = true
	s.pass(1, time.Second)
	s.edit("y", toPorts(8080, 443))
	s.settle()
	same(t, "ports of y while e2 is lost", s.on("e1", "y"), "8080")
	delete(s.lost, "e2")
	pause(true)
	s.settle()
	same(t, "ports of y while e2 is paused", s.on("e1", "y"), "8080")
	pause(false)
	s.settle()
	for _, edge := range []string{"e1", "e2"} {
		same(t, "ports of x on "+edge, s.on(edge, "x"), "80")
		same(t, "ports of y on "+edge, s.on(edge, "y"), "8080 443")
	}
	same(t, "status of y", told(s.service("y")), "192.0.2.7 Proxy 8080/TCP 443/TCP")
}

// TestRemovedLastGoodIsWaitedFor deletes a Service of which an edge holds an older
// version: the edge may have reason not to remove it at once.
func TestRemovedLastGoodIsWaitedFor(t *testing.T) {
	s := shareOne(t, []string{"e"}, onPorts("x", 443), onPorts("z", 80), ofNamespace("other", onPorts("y", 8080)))
	s.edit("x", annotated(AnnotationAlgorithm, string(lb.SourceHash)))
	s.settle()
	same(t, "ports of x as before", s.on("e", "x"), "443")
	s.remove("x")
	s.edit("y", toPorts(8080, 443))
	s.pass(1, time.Second)
	same(t, "listeners of y before the edge has let go", len(s.wanted["e"].Config.LoadBalancers["uid-y"].Listeners), 1)
	s.settle()
	same(t, "ports of y", s.on("e", "y"), "8080 443")
}

// TestLastGoodSurvivesDrains drains one edge after the other after a restart, and
// adds one, while a Service is refused.
func TestLastGoodSurvivesDrains(t *testing.T) {
	s := shareOne(t, []string{"e1", "e2"}, onPorts("web", 80, 443), ofNamespace("other", onPorts("y", 8080)))
	s.edit("web", unservable)
	s.restart()
	s.settle()
	drain := func(i int, drained bool) {
		e := s.world.Edges[i].DeepCopy()
		e.Spec.Drain = drained
		s.stamp(e, i)
		s.world.Edges = slices.Clone(s.world.Edges)
		s.world.Edges[i] = e
		s.settle()
	}
	for i, edge := range []string{"e1", "e2"} {
		drain(i, true)
		same(t, "ports on "+edge+" while it is drained", s.on(edge, "web"), "")
		drain(i, false)
		same(t, "ports on "+edge+" after that", s.on(edge, "web"), "80 443")
	}
	more := testEdge("e3")
	s.stamp(more, 5)
	s.world.Edges = append(slices.Clone(s.world.Edges), more)
	s.settle()
	same(t, "ports on a new edge", s.on("e3", "web"), "80 443")
	same(t, "pool of nodes on a new edge", s.held["e3"].Holds.LoadBalancers["uid-web"].Pool, AllNodes)

	// It is nowhere for a while, and has lost a node port meanwhile.
	drain(0, true)
	drain(1, true)
	drain(2, true)
	s.edit("web", func(svc *v1.Service) { svc.Spec.Ports[0].NodePort = 31999 })
	s.edit("y", toPorts(8080, 443))
	s.settle()
	drain(0, false)
	same(t, "ports after it was nowhere", s.on("e1", "web"), "443")
	same(t, "ports of the other one", s.on("e1", "y"), "8080")
	s.edit("web", func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = nil })
	s.settle()
	same(t, "ports when it is right again", s.on("e1", "web"), "80 443")
}
