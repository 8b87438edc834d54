package provider

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestMessagesWait changes nothing but the message of a condition, again and
// again: it is written once a minute.
func TestMessagesWait(t *testing.T) {
	s := crowd(t, 1, 2)
	s.world.Edges = append(s.world.Edges, testEdge("e2"))
	s.stamp(s.world.Edges[1], 7)
	complain := func(detail string) {
		for _, name := range []string{"e1", "e2"} {
			st := s.world.Fleet[name]
			st.Status.LoadBalancers = map[lb.UID]lb.LoadBalancerStatus{"uid-00000": {Applied: true}}
			if name == "e2" {
				st.Status.LoadBalancers["uid-00000"] = lb.LoadBalancerStatus{Problems: []lb.Problem{{Type: "exhausted", Detail: detail}}}
			}
			s.world.Fleet[name] = st
		}
	}
	s.settle()
	writes := func() (n int) {
		d := s.decider.decide(s.world)
		for target, w := range d.Writes {
			if target.Kind == ServiceKind {
				n++
			}
			s.write(target, w)
		}
		if n == 0 && d.WakeIn <= 0 {
			t.Error("a message waits, and nobody asks for another round")
		}
		return n
	}
	complain("1 socket is left")
	s.decider.decide(s.world) // a decision that is not written in time
	same(t, "writes at the first problem", writes(), 1)
	same(t, "programmed", says(s.world.Services[0], ConditionProgrammed), "True Degraded")
	total := 0
	for i := range 120 {
		s.world.Now = s.world.Now.Add(time.Second)
		complain(fmt.Sprintf("%d sockets are left", i))
		total += writes()
	}
	if total < 2 || total > 3 {
		t.Errorf("120 new messages in two minutes were written %d times, want about twice", total)
	}
}

// TestOthersConditionsStay leaves alone what others say about a Service.
func TestOthersConditionsStay(t *testing.T) {
	s := crowd(t, 1, 2)
	svc := s.world.Services[0]
	svc.Status.Conditions = []metav1.Condition{{Type: "example.com/Mine", Status: "True", Reason: "Because", LastTransitionTime: metav1.NewTime(epoch)}}
	svc.Annotations = map[string]string{"example.com/mine": "yes"}
	svc.Finalizers = []string{"example.com/mine"}
	s.settle()
	svc = s.world.Services[0]
	same(t, "conditions", len(svc.Status.Conditions), 5)
	svc.Spec.Type = v1.ServiceTypeClusterIP
	s.world.Controllers.Stock = false // so that it is ours to take the finalizer away
	s.settle()
	svc = s.world.Services[0]
	same(t, "conditions", len(svc.Status.Conditions), 1)
	same(t, "others' condition", says(svc, "example.com/Mine"), "True Because")
	same(t, "annotations", svc.Annotations, map[string]string{"example.com/mine": "yes"})
	same(t, "finalizers", svc.Finalizers, []string{"example.com/mine"})
}

// TestQuarantineIsBounded frees more addresses than a status can list while the
// edge is away. After a restart nothing new is assigned until it is back.
func TestQuarantineIsBounded(t *testing.T) {
	const n = v1alpha1.MaxQuarantined + 100
	s := crowd(t, n, 1)
	s.settle()
	same(t, "used", s.world.Pools[0].Status.Used, n)
	served := s.world.Fleet["e1"]
	s.world.Services = nil
	freeze := func() { s.world.Fleet["e1"] = served }
	for range 3 {
		s.world.Now = s.world.Now.Add(10 * time.Second)
		s.round()
		freeze()
	}
	status := s.world.Pools[0].Status
	same(t, "listed", len(status.Quarantined), v1alpha1.MaxQuarantined)
	same(t, "quarantined", status.QuarantinedTotal, n)
	same(t, "truncated", status.QuarantineTruncated, true)

	s.decider = newDecider()
	s.world.Fleet = map[string]EdgeState{"e1": {Name: "e1"}}
	s.world.Services = []*v1.Service{testService("new", 30080)}
	s.stamp(s.world.Services[0], 1)
	silent := s.world.Fleet["e1"]
	for range 3 {
		s.world.Now = s.world.Now.Add(10 * time.Second)
		s.round()
		s.world.Fleet["e1"] = silent
	}
	same(t, "assigned", says(s.world.Services[0], ConditionAddressAssigned), "False NoEligiblePool")
	s.settle()
	same(t, "assigned", says(s.world.Services[0], ConditionAddressAssigned), "True Assigned")
	same(t, "quarantined", s.world.Pools[0].Status.QuarantinedTotal, 0)
}

// TestStrangersOnEdges finds an edge that holds an address for a Service that is
// not there: the address is given to nobody else before the edge has let go.
func TestStrangersOnEdges(t *testing.T) {
	s := crowd(t, 0, 1)
	s.world.Fleet["e1"] = EdgeState{Name: "e1", Known: true, Connected: true, Holds: lb.Config{
		Revision: 5, LoadBalancers: map[lb.UID]lb.LoadBalancer{"lost": {Name: "default/lost", Addresses: addrs("10.32.0.1")}},
	}, Status: lb.Status{Revision: 5}}
	svc := testService("new", 30080, annotated(AnnotationAddresses, "10.32.0.1"))
	s.stamp(svc, 1)
	s.world.Services = []*v1.Service{svc}
	d := s.decider.decide(s.world)
	for target, w := range d.Writes {
		s.write(target, w)
	}
	same(t, "assigned", says(s.world.Services[0], ConditionAddressAssigned), "False AddressQuarantined")
	if r := d.Wanted["e1"].Config.Revision; r <= 5 {
		t.Errorf("revision is %d, want one above that of the edge", r)
	}
	s.settle()
	same(t, "assigned", says(s.world.Services[0], ConditionAddressAssigned), "True Assigned")
}

// TestApplyTime measures from a change until it is applied, once.
func TestApplyTime(t *testing.T) {
	s := crowd(t, 3, 1)
	var all []time.Duration
	for range 6 {
		d := s.decider.decide(s.world)
		all = append(all, d.Stats.Applied...)
		for target, w := range d.Writes {
			s.write(target, w)
		}
		for name, w := range d.Wanted {
			s.world.Fleet[name] = s.serve(name, w)
		}
		s.world.Now = s.world.Now.Add(time.Second)
	}
	same(t, "times", all, "[2s 2s 2s]")
	restarted := newDecider()
	if d := restarted.decide(s.world); len(d.Stats.Applied) != 0 {
		t.Errorf("a restart counts %v as changes", d.Stats.Applied)
	}
}

func TestConfirmRemovals(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, _ *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		c.add(testService("ours", 30080, ofClass))
		c.add(testService("stock", 30081))
		excluded := testNode("excluded", "10.0.0.9")
		excluded.Labels = map[string]string{v1.LabelNodeExcludeBalancers: ""}
		c.add(excluded)
		c.settle(time.Second)
		got, err := c.provider.ConfirmRemovals(t.Context(), []string{
			"loadBalancers/uid-ours", "loadBalancers/uid-stock", "loadBalancers/uid-gone", "nodes/n1", "nodes/excluded", "nodes/gone",
		})
		if err != nil {
			t.Fatal(err)
		}
		same(t, "confirmed", got, []string{"loadBalancers/uid-stock", "loadBalancers/uid-gone", "nodes/excluded", "nodes/gone"})
	})
}

// TestBigMessageIsBounded makes as many complaints as there can be.
func TestBigMessageIsBounded(t *testing.T) {
	svc := testService("web", 30080)
	for i := range 200 {
		annotated(Annotation(fmt.Sprintf("%sunknown-%d", Prefix, i)), strings.Repeat("ä", 300))(svc)
	}
	s := crowd(t, 0, 1)
	svc.UID = types.UID("uid-web")
	s.stamp(svc, 1)
	s.world.Services = []*v1.Service{svc}
	s.settle()
	c := conditionOf(s.world.Services[0], ConditionProgrammed)
	if c == nil || c.Reason != ReasonAnnotationsIgnored || len(c.Message) > maxMessage {
		t.Errorf("condition is %+v, want AnnotationsIgnored with at most %d bytes", c, maxMessage)
	}
}

// TestSameEndpoint creates a second Edge for the same machine: it is left alone
// and says why.
func TestSameEndpoint(t *testing.T) {
	s := crowd(t, 1, 1)
	twin := testEdge("twin")
	twin.Spec.Endpoint = "https://E1:9440/"
	s.stamp(twin, 900)
	s.world.Edges = append(s.world.Edges, twin)
	s.settle()
	if _, ok := s.wanted["twin"]; ok || len(s.wanted) != 1 {
		t.Errorf("wanted are %v, want e1 alone", sortedNames(s.wanted))
	}
	c := meta.FindStatusCondition(s.world.Edges[1].Status.Conditions, v1alpha1.EdgeReady)
	if c == nil || c.Reason != ReasonDoubled || !strings.Contains(c.Message, `"e1"`) {
		t.Errorf("condition of the twin is %+v, want SameEndpoint that names e1", c)
	}
}

// TestSubstitutedCheck tells that nobody answers the health check itself.
func TestSubstitutedCheck(t *testing.T) {
	s := crowd(t, 1, 3)
	s.settle()
	st := s.world.Fleet["e1"]
	members := map[lb.NodeName]lb.MemberStatus{}
	for name := range s.wanted["e1"].Config.Nodes {
		members[name] = lb.MemberStatus{State: healthcheck.Up, Substitute: true}
	}
	st.Status.Checks = map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"http:10256/healthz": members}
	s.world.Fleet["e1"] = st
	for target, w := range s.decider.decide(s.world).Writes {
		s.write(target, w)
	}
	same(t, "healthy", says(s.world.Services[0], ConditionBackendsHealthy), "True HealthySubstitute")
}

// TestUncheckedNodes tells that nobody asks the nodes, once an edge has told so.
func TestUncheckedNodes(t *testing.T) {
	l := lb.LoadBalancer{HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.None}}}
	s := &subject{good: &Translation{Check: l.HealthCheck.ID(), LoadBalancer: l}, built: &built{LoadBalancer: l}}
	members := map[lb.NodeName]lb.Member{"a": {}, "b": {}}
	if c, known := healthy(s, len(members), countVotes(members, s.good.Check, []EdgeState{{}})); known {
		t.Errorf("before any edge has told: got %+v; want nothing to tell", c)
	}
	st := EdgeState{Status: lb.Status{Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{
		"none": {"a": {State: healthcheck.Unchecked}, "b": {State: healthcheck.Unchecked}},
	}}}
	c, known := healthy(s, len(members), countVotes(members, s.good.Check, []EdgeState{st}))
	if !known || c.reason != ReasonNotChecked {
		t.Errorf("got %+v, %v; want %s", c, known, ReasonNotChecked)
	}
	if h, _ := healthIn(st, s.good.Check, "a"); h.State != "not checked" {
		t.Errorf("node in an explanation: got %q; want not checked", h.State)
	}
}
