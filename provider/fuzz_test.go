package provider

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/lb"
)

// FuzzReadAnnotations reads anything: what is accepted makes a load balancer
// that is valid, and what is not is complained about.
func FuzzReadAnnotations(f *testing.F) {
	for _, name := range Annotations() {
		for _, value := range []string{"", "tcp", "http=v2,https=v1", "500ms", "3", "-1", "192.0.2.1,2001:db8::1", "a in (b,c)", "drain", "/x y", strings.Repeat("9", 5000)} {
			f.Add(string(name), value, string(AnnotationHealthCheckTimeout), "9s")
		}
	}
	f.Add("eclusa.io/health-chek-path", "/", "other.io/x", "y")
	f.Fuzz(func(t *testing.T, name1, value1, name2, value2 string) {
		svc := testService("web", 30080, annotated(Annotation(name1), value1), annotated(Annotation(name2), value2))
		svc.UID = "uid-web"
		for _, way := range []lb.Forwarding{lb.ForwardNAT, lb.ForwardDirect} {
			checkTranslation(t, svc, way)
		}
	})
}

// checkTranslation says what must be true of every Service that is read.
func checkTranslation(t *testing.T, svc *v1.Service, way lb.Forwarding) {
	t.Helper()
	translation := Translate(svc, way)
	for _, c := range append(translation.Complaints, translation.Refusals...) {
		if c.Field == "" || c.Want == "" || len(c.String()) > 3*maxAnnotation {
			t.Errorf("complaint %+v says too little or too much", c)
		}
	}
	if len(translation.Refusals) > 0 {
		return
	}
	l := translation.LoadBalancer
	l.Addresses, l.Pool = addrs("192.0.2.1"), AllNodes
	config := lb.Config{Pools: map[lb.PoolName]lb.Pool{AllNodes: {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{"uid-web": l}}
	if s := translation.Wishes.NodeSelector; s != nil {
		config.Pools[selectedNodes(s)] = lb.Pool{}
	}
	for _, c := range config.Validate() {
		t.Errorf("annotations %q, %s: accepted, but %s", svc.Annotations, way, c)
	}
}

// FuzzDecide makes random clusters: what edges are told is always valid, each
// address has one owner, every Service that is not served says why, and whatever
// happens to one Service or node changes nothing of the others.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		s := newSimulation(t)
		r := rand.New(rand.NewPCG(seed, 0))
		s.randomise(r)
		s.settle()
		s.check()
		s.checkUnrelated(r)
	})
}

// TestManySeeds is FuzzDecide without the wait for an instrumented build.
func TestManySeeds(t *testing.T) {
	for seed := range uint64(1000) {
		s := newSimulation(t)
		r := rand.New(rand.NewPCG(seed, 1))
		s.randomise(r)
		s.settle()
		s.check()
		s.checkUnrelated(r)
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

// randomise fills the world.
func (s *simulation) randomise(r *rand.Rand) {
	pick := func(choices ...string) string { return choices[r.IntN(len(choices))] }
	for i := range r.IntN(6) {
		n := randomNode(i, r, pick)
		s.stamp(n, i)
		s.world.Nodes = append(s.world.Nodes, n)
	}
	for i := range r.IntN(4) {
		p := testPool(fmt.Sprintf("p%d", i), pick("192.0.2.0/29", "192.0.2.8/29", "2001:db8::/126", "192.0.2.3", "nonsense", "192.0.2.9-192.0.2.1"))
		p.Spec.AutoAssign = ptr.To(r.IntN(3) > 0)
		p.Spec.Sharing = v1alpha1.Sharing(pick("", "ByKey", "Always"))
		if r.IntN(3) == 0 {
			p.Spec.EdgeSelector = selector("zone", pick("a", "b"))
		}
		s.stamp(p, i)
		s.world.Pools = append(s.world.Pools, p)
	}
	for i := range r.IntN(3) {
		e := testEdge(fmt.Sprintf("e%d", i))
		e.Labels = map[string]string{"zone": pick("a", "b")}
		s.stamp(e, i)
		s.world.Edges = append(s.world.Edges, e)
	}
	s.able = [][]lb.Capability{nil, {lb.CapFamilyTranslation, lb.CapSCTP}, {lb.CapProxyV1, lb.CapSourceHash}}[r.IntN(3)]
	for i := range r.IntN(12) {
		s.world.Services = append(s.world.Services, s.randomService(r, i, pick))
	}
	s.randomiseWays(rand.New(rand.NewPCG(uint64(s.version), uint64(len(s.world.Services)))))
}

// randomiseWays has some pools forward directly, and takes the node ports from some
// Services.
func (s *simulation) randomiseWays(r *rand.Rand) {
	for _, p := range s.world.Pools {
		p.Spec.Forwarding = []v1alpha1.Forwarding{"", v1alpha1.ForwardNAT, v1alpha1.ForwardDirect}[r.IntN(3)]
	}
	if r.IntN(2) == 0 {
		s.able = append(slices.Clone(s.able), lb.CapDirect)
	}
	for _, svc := range s.world.Services {
		if r.IntN(4) > 0 {
			continue
		}
		svc.Spec.AllocateLoadBalancerNodePorts = ptr.To(false)
		for i := range svc.Spec.Ports {
			svc.Spec.Ports[i].NodePort = 0
		}
	}
}

func randomNode(i int, r *rand.Rand, pick func(...string) string) *v1.Node {
	n := testNode(fmt.Sprintf("n%d", i), pick("10.0.0.1", "10.0.0.2", "fd00::1", "127.0.0.1", "nonsense", "fe80::1", ""))
	n.Labels = map[string]string{pick("role", v1.LabelNodeExcludeBalancers, v1.LabelTopologyZone, string(WeightKey)): pick("web", "true", "false", "", "7")}
	if r.IntN(4) == 0 {
		n.Spec.Taints = []v1.Taint{{Key: pick(leavingTaints...)}}
	}
	return n
}

// randomAnnotation changes something that a Service asks for.
func randomAnnotation(svc *v1.Service, pick func(...string) string) {
	var names []string
	for _, name := range append(Annotations(), AnnotationAssignedAddresses) {
		names = append(names, string(name))
	}
	value := pick("192.0.2.1", "p0", "role=web", "192.0.2.1,2001:db8::1", "2001:db8::2", "a,b", "v1", "v2", "80=v2", "none", "grpc", "tcp",
		"traffic-port", "/x", "5s", "100ms", "3", "source-hash", "least-connections", "drain", "")
	annotated(Annotation(pick(names...)), value)(svc)
}

func (s *simulation) randomService(r *rand.Rand, i int, pick func(...string) string) *v1.Service {
	svc := testService(fmt.Sprintf("s%d", i), int32(r.IntN(3)*(30000+i)))
	svc.UID = types.UID("uid-" + svc.Name)
	svc.CreationTimestamp = metav1.NewTime(epoch.Add(time.Duration(r.IntN(5)) * time.Second))
	svc.Spec.Type = v1.ServiceType(pick("LoadBalancer", "LoadBalancer", "LoadBalancer", "ClusterIP"))
	if r.IntN(3) == 0 {
		svc.Spec.LoadBalancerClass = ptr.To(pick(Class, "example.com/other"))
	}
	for range r.IntN(3) {
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{
			Protocol: v1.Protocol(pick("TCP", "UDP", "SCTP", "")), Port: int32(1 + r.IntN(3)), NodePort: int32(30000 + r.IntN(100)),
		})
	}
	svc.Spec.ExternalTrafficPolicy = v1.ServiceExternalTrafficPolicy(pick("Cluster", "Local"))
	svc.Spec.HealthCheckNodePort = int32(r.IntN(2) * 31000)
	svc.Spec.IPFamilies = [][]v1.IPFamily{nil, {v1.IPv4Protocol}, {v1.IPv6Protocol, v1.IPv4Protocol}}[r.IntN(3)]
	svc.Spec.IPFamilyPolicy = []*v1.IPFamilyPolicy{nil, ptr.To(v1.IPFamilyPolicyRequireDualStack)}[r.IntN(2)]
	svc.Spec.LoadBalancerSourceRanges = [][]string{nil, {"10.0.0.0/8"}, {"::/0", "nonsense"}}[r.IntN(3)]
	for range r.IntN(3) {
		name := []Annotation{AnnotationAddresses, AnnotationAddressPool, AnnotationNodeSelector, AnnotationSharingKey, AnnotationAssignedAddresses}[r.IntN(5)]
		annotated(name, pick("192.0.2.1", "p0", "role=web", "192.0.2.1,2001:db8::1", "a,b"))(svc)
	}
	for range r.IntN(3) {
		randomAnnotation(svc, pick)
	}
	if r.IntN(4) == 0 {
		svc.Status.LoadBalancer.Ingress = []v1.LoadBalancerIngress{{IP: pick("192.0.2.1", "203.0.113.1", "")}}
	}
	if r.IntN(2) == 0 {
		slice := testSlice(svc.Name, "n0", pick("n1", "elsewhere"))
		slice.Endpoints[0].Conditions.Ready = ptr.To(r.IntN(2) == 0)
		s.slices["default/"+svc.Name] = []*discoveryv1.EndpointSlice{slice}
	}
	s.stamp(svc, i)
	svc.CreationTimestamp = metav1.NewTime(epoch.Add(time.Duration(r.IntN(5)) * time.Second))
	return svc
}

// check makes sure of what must be true of every cluster.
func (s *simulation) check() {
	s.t.Helper()
	for name, w := range s.wanted {
		type frontend struct {
			addr     string
			protocol lb.Protocol
			port     uint16
		}
		owner := map[frontend]string{}
		for uid, l := range w.Config.LoadBalancers {
			for _, a := range l.Addresses {
				for _, li := range l.Listeners {
					f := frontend{a.String(), li.Protocol, li.Port}
					if other, taken := owner[f]; taken && other != string(uid) {
						s.t.Errorf("edge %s: %v belongs to %s and to %s", name, f, other, uid)
					}
					owner[f] = string(uid)
				}
			}
		}
		for _, c := range w.Config.Validate() {
			if !c.Partial {
				s.t.Errorf("edge %s is told what is not valid: %s", name, c)
			}
		}
	}
	for _, svc := range s.world.Services {
		path := s.world.Controllers.PathOf(svc)
		switch {
		case path == Nobody && onceOurs(svc):
			s.t.Errorf("%s is not ours and carries our traces: %v %v %v", svc.Name, svc.Annotations, svc.Finalizers, svc.Status.Conditions)
		case path != Nobody && says(svc, ConditionAddressAssigned) == "nothing":
			s.t.Errorf("%s does not say whether it has an address", svc.Name)
		case path != Nobody && told(svc) == "" && says(svc, ConditionAddressAssigned) == "True Assigned" && strings.HasPrefix(says(svc, ConditionProgrammed), "True"):
			s.t.Errorf("%s is served and does not tell its addresses", svc.Name)
		}
	}
}
