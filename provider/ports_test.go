package provider

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
	"github.com/eclusa-lb/eclusa/report"
)

// manyPorts gives a Service so many TCP ports from 1000 on.
func manyPorts(n int, nodePort bool) func(*v1.Service) {
	return func(svc *v1.Service) {
		svc.Spec.Ports = nil
		for i := range n {
			p := v1.ServicePort{Name: fmt.Sprintf("p%d", i), Protocol: v1.ProtocolTCP, Port: int32(1000 + i)}
			if nodePort {
				p.NodePort = int32(10000 + i)
			}
			svc.Spec.Ports = append(svc.Spec.Ports, p)
		}
	}
}

// TestManyPorts serves 1,500 ports of one Service, of which the last two cannot be,
// plans and explains them, and refuses more than it serves.
func TestManyPorts(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster, edge *lbtest.FakeBalancer) {
		c.start(ClassController)
		defer c.stop()
		svc := testService("web", 0, ofClass, manyPorts(1500, true))
		svc.Spec.Ports[1498].Protocol, svc.Spec.Ports[1499].NodePort = v1.ProtocolSCTP, 0
		c.add(svc)
		c.settle(reachedAfter)
		same(t, "listeners", len(edge.Held().LoadBalancers["uid-web"].Listeners), 1498)
		is := c.service("web")
		same(t, "programmed", says(is, ConditionProgrammed), "True Degraded")
		m := conditionOf(is, ConditionProgrammed).Message
		if !strings.Contains(m, "port 2499/tcp is not served") || !strings.Contains(m, "port 2498/sctp") {
			t.Errorf("message is %q, want both ports", m)
		}
		ports := is.Status.LoadBalancer.Ingress[0].Ports
		same(t, "told ports", len(ports), 1500)
		same(t, "errors", []string{ptr.Deref(ports[0].Error, ""), ptr.Deref(ports[1498].Error, ""), ptr.Deref(ports[1499].Error, "")},
			[]string{"", "eclusa.io/Unsupported", "eclusa.io/NoNodePort"})
		e, err := c.provider.Snapshot().Explain("default", "web")
		if err != nil {
			t.Fatal(err)
		}
		same(t, "explained listeners", len(e.Listeners), 1499)

		// Right again: nothing is said of ports any more.
		is.Spec.Ports = is.Spec.Ports[:1498]
		c.change(is)
		c.settle(reachedAfter)
		same(t, "then", told(c.service("web")), "192.0.2.10 Proxy")
		same(t, "programmed then", says(c.service("web"), ConditionProgrammed), "True Programmed")
	})
}

func TestPortsRefused(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*v1.Service)
		want   string
	}{
		{"too many", manyPorts(MaxPorts+1, true), "spec.ports: \"4097 ports\": must not be more than 4096: divide them among several Services"},
		{"none", manyPorts(0, true), "spec.ports: \"\": must have at least one port"},
		{"no node port", manyPorts(2000, false), "spec.ports[0].nodePort: \"0\": must be a node port, and no port has one, while no edge that could serve the Service can do without: set spec.allocateLoadBalancerNodePorts to true"},
		{"port", func(svc *v1.Service) { svc.Spec.Ports[0].Port = 70000 }, "spec.ports[0].port: \"70000\": must be from 1 to 65535"},
		{"node port", func(svc *v1.Service) { svc.Spec.Ports[0].NodePort = math.MaxInt32 }, "spec.ports[0].nodePort: \"2147483647\": must be from 1 to 65535"},
		{"twice", func(svc *v1.Service) { svc.Spec.Ports = append(svc.Spec.Ports, svc.Spec.Ports[0]) }, "spec.ports[1]: \"80/tcp\": must differ from spec.ports[0] in port or protocol"},
		{"affinity", func(svc *v1.Service) {
			svc.Spec.SessionAffinity = v1.ServiceAffinityClientIP
			svc.Spec.SessionAffinityConfig = &v1.SessionAffinityConfig{ClientIP: &v1.ClientIPConfig{TimeoutSeconds: ptr.To(int32(86401))}}
		}, "spec.sessionAffinityConfig.clientIP.timeoutSeconds: \"86401\": must be from 1 to 86400"},
		{"mapped range", func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = []string{"::ffff:0.0.0.0/90"} }, "spec.loadBalancerSourceRanges: \"::ffff:0.0.0.0/90\": must be a range"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Translate(testService("web", 30080, test.change), lb.ForwardNAT).Refusals
			if len(got) != 1 || !strings.HasPrefix(got[0].String(), test.want) {
				t.Errorf("refusals are %v, want one that begins with %q", got, test.want)
			}
		})
	}
}

// TestSourceRanges reads the field and the old annotation, and remarks who is
// locked out.
func TestSourceRanges(t *testing.T) {
	both := func(svc *v1.Service) { svc.Spec.IPFamilies = []v1.IPFamily{v1.IPv4Protocol, v1.IPv6Protocol} }
	tr := Translate(testService("web", 30080, both, func(svc *v1.Service) {
		svc.Spec.LoadBalancerSourceRanges = []string{"0.0.0.0/0", "::ffff:10.1.0.0/112"}
		svc.Annotations = map[string]string{v1.AnnotationLoadBalancerSourceRangesKey: "192.0.2.0/24"}
	}), lb.ForwardNAT)
	same(t, "ranges", tr.LoadBalancer.SourceRanges, "[0.0.0.0/0 10.1.0.0/16]")
	same(t, "remarks", tr.Remarks, "[spec.loadBalancerSourceRanges has no ipv6 range, so that nobody may connect over ipv6; ::/0 would admit everybody]")
	same(t, "complaints", tr.Complaints, `[service.beta.kubernetes.io/load-balancer-source-ranges: "192.0.2.0/24": must not be given beside spec.loadBalancerSourceRanges; the field counts and the annotation is not looked at]`)
}

// TestServes knows which endpoints take connections: with
// publishNotReadyAddresses all are ready, whatever their probes say, and one that
// terminates serves as long as it says so.
func TestServes(t *testing.T) {
	yes, no := ptr.To(true), ptr.To(false)
	for _, test := range []struct {
		what                        string
		ready, serving, terminating *bool
		want                        bool
	}{
		{"nothing said", nil, nil, nil, true},
		{"ready", yes, yes, no, true},
		{"not ready", no, no, no, false},
		{"published though not ready", yes, no, no, true},
		{"terminating and serving", no, yes, yes, true},
		{"terminating and done", no, no, yes, false},
		{"of an old cluster", no, nil, nil, false},
	} {
		if got := serves(discoveryv1.EndpointConditions{Ready: test.ready, Serving: test.serving, Terminating: test.terminating}); got != test.want {
			t.Errorf("an endpoint that is %s serves: %v, want %v", test.what, got, test.want)
		}
	}
}

// TestPlanSaysTheSame plans what would be complained about later.
func TestPlanSaysTheSame(t *testing.T) {
	s := small(t, func(*simulation) {})
	p, err := s.decider.snapshot(s.world).Plan(t.Context(), report.PlanRequest{Objects: []json.RawMessage{json.RawMessage(`{"apiVersion":"v1","kind":"Service",
		"metadata":{"name":"new","annotations":{"eclusa.io/connect-timeout":"1m","eclusa.io/health-chek-port":"1"}},
		"spec":{"type":"LoadBalancer","clusterIP":"None","ipFamilies":["IPv4"],"loadBalancerSourceRanges":["2001:db8::/32"],
		"ports":[{"port":80,"nodePort":30999},{"port":81,"protocol":"SCTP","nodePort":30998}]}}`)}})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range p.Services[0].Findings {
		all = append(all, f.Where+": "+f.What)
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{
		`spec.clusterIP: None: a Service of type LoadBalancer cannot be headless`,
		`eclusa.io/connect-timeout: "1m": must be a duration with unit from 10ms to 30s`,
		`eclusa.io/health-chek-port: "1": is not an annotation that eclusa knows; did you mean eclusa.io/health-check-port?`,
		`Service: spec.loadBalancerSourceRanges has no ipv4 range`,
		`port 81/sctp: edge`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("plan does not say %q:\n%s", want, text)
		}
	}
}

// TestPortErrorEnds lets one of two edges learn to serve a port while the other is
// out of reach: that the port is not served is told no longer.
func TestPortErrorEnds(t *testing.T) {
	s := scene(t, []string{"e1", "e2"}, testService("a", 30080, func(svc *v1.Service) {
		svc.Spec.Ports = append(svc.Spec.Ports, v1.ServicePort{Name: "s", Protocol: v1.ProtocolSCTP, Port: 99, NodePort: 30099})
	}))
	broken := "192.0.2.1 Proxy 80/TCP 99/SCTP=eclusa.io/Unsupported"
	same(t, "at first", told(s.world.Services[0]), broken)
	s.lost["e2"] = true
	s.editAt(0, annotated(AnnotationIdleTimeout, "5s"))
	s.settle()
	same(t, "on an edge of two", told(s.world.Services[0]), broken)
	s.able = append(s.able, lb.CapSCTP)
	s.settle()
	same(t, "served", told(s.world.Services[0]), "192.0.2.1 Proxy")
	s.restart()
	s.settle()
	same(t, "after a restart", told(s.world.Services[0]), "192.0.2.1 Proxy")
}

func TestPortErrorNames(t *testing.T) {
	for kind, want := range map[string]string{
		"address-held": "AddressHeld", "unsupported": "Unsupported", "": "NotServed", "-": "NotServed",
		"no such thing": "NotServed", "a/b": "NotServed", "öl": "NotServed", "line\nbreak": "NotServed", strings.Repeat("x", 51): "NotServed",
	} {
		same(t, kind, camelCase(kind), want)
	}
}
