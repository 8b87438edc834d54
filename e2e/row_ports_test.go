package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

var portEntries = append(append(
	both(entry{section: "Ports and protocols", name: "ports come and go beside long connections"}, portsComeAndGo),
	both(entry{section: "Changes", name: "of port, node port and type"}, changes)...),
	entry{section: "Many ports", name: "1,200 on one Service, from outside and from a pod", alone: true, run: manyPorts},
	entry{section: "SCTP", name: "is refused aloud beside a port that works", run: sctpBesideTCP})

// Each port is a listener of its own, the same number over both protocols too.
func portsComeAndGo(t *testing.T, s *stage, from caller) {
	o := s.serve(t, "", dualStack, ports("web 80/TCP http", "h2 443/TCP http", "h3 443/UDP udp-echo", "echo 7/TCP tcp-echo"))
	for _, a := range o.addrs {
		at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(a, port) }
		from.answers(t, "tcp", at(80))
		from.answers(t, "tcp", at(443))
		from.answers(t, "udp", at(443))
		talk, session := from.talk(t, at(7)), from.session(t, at(443))

		o.change(t, ports("web 8080/TCP http", "h2 443/TCP http", "h3 443/UDP udp-echo", "echo 7/TCP tcp-echo"))
		from.answers(t, "tcp", at(8080))
		from.refused(t, "tcp", at(80))
		o.change(t, ports("web 80/TCP http", "h2 443/TCP http", "h3 443/UDP udp-echo", "echo 7/TCP tcp-echo"))
		from.answers(t, "tcp", at(80))
		from.refused(t, "tcp", at(8080))

		if err := talk.end(); err != nil {
			t.Errorf("the long connection to port 7 of %s broke: %v", a, err)
		}
		session.same(t)
	}
}

// The address stays as long as the Service is a load balancer, and goes with that.
func changes(t *testing.T, s *stage, from caller) {
	o := s.serve(t, "", ports("web 80/TCP http", "echo 7/TCP tcp-echo"))
	from.answers(t, "tcp", o.at(80))
	talk := from.talk(t, o.at(7))
	o.change(t, ports("web 81/TCP http", "echo 7/TCP tcp-echo"))
	from.answers(t, "tcp", o.at(81))
	from.refused(t, "tcp", o.at(80))

	before := lab.NodePort(o.get(t), 81)
	next := before
	eventually(t, 10*time.Second, func() error {
		// Another Service may have the port.
		next = 30000 + (next+7)%manyNodePorts
		svc := o.get(t)
		svc.Spec.Ports[0].NodePort = next
		_, err := o.kube.CoreV1().Services(o.ns).Update(t.Context(), svc, updateOptions)
		return err
	})
	eventually(t, 10*time.Second, func() error { return o.onEdge(t, next) })
	from.answers(t, "tcp", o.at(81))
	if err := talk.end(); err != nil {
		t.Errorf("the long connection to port 7 broke while port 80 changed: %v", err)
	}
	if now := lab.NodePort(o.get(t), 81); now != next || now == before {
		t.Errorf("node port %d, want %d and not %d", now, next, before)
	}
	if got := o.addresses(t, o.ns, o.name); got[0] != o.addrs[0] {
		t.Errorf("address %s became %s", o.addrs[0], got[0])
	}

	for _, kind := range []corev1.ServiceType{corev1.ServiceTypeNodePort, corev1.ServiceTypeClusterIP} {
		o.change(t, func(s *corev1.Service) {
			s.Spec.Type = kind
			if kind == corev1.ServiceTypeClusterIP {
				s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 0, 0
			}
		})
		eventually(t, 10*time.Second, func() error {
			if in := o.get(t).Status.LoadBalancer.Ingress; len(in) > 0 {
				return fmt.Errorf("a Service of type %s has ingress %v", kind, in)
			}
			return nil
		})
		from.unanswered(t, "tcp", o.at(81))
		o.change(t, func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer })
		o.wait(t)
		from.answers(t, "tcp", o.at(81))
	}
}

// onEdge returns an error unless the edge sends the Service's connections to the
// node port.
func (o *served) onEdge(t *testing.T, nodePort int32) error {
	t.Helper()
	ports := []uint16{}
	for _, l := range o.shown(t).Listeners {
		if int32(l.TargetPort) == nodePort {
			return nil
		}
		ports = append(ports, l.TargetPort)
	}
	return fmt.Errorf("service %q goes to node ports %v on the edge, want %d among them", o.name, ports, nodePort)
}

// A Service may have more ports than an EndpointSlice usually has endpoints.
func manyPorts(t *testing.T, s *stage) {
	const count, first = 1200, 10001
	begun := time.Now()
	o := s.serve(t, "", func(s *corev1.Service) {
		s.Spec.Ports = nil
		for i := range count {
			s.Spec.Ports = append(s.Spec.Ports, port(fmt.Sprintf("p%d %d/TCP http", i, first+i)))
		}
	})
	for _, p := range []uint16{first, first + count/2, first + count - 1} {
		fromOutside.of(s).answers(t, "tcp", o.at(p))
		fromPod.of(s).answers(t, "tcp", o.at(p))
	}
	t.Logf("%d ports served after %s", count, time.Since(begun).Round(time.Millisecond))
	if got := len(o.shown(t).Listeners); got != count {
		t.Errorf("the edge has %d listeners of the Service, want %d", got, count)
	}
	fromOutside.of(s).refused(t, "tcp", o.at(first-1))
}

// What cannot be served is said, and the rest is served.
func sctpBesideTCP(t *testing.T, s *stage) {
	o := s.make(t, "", ports("web 80/TCP http", "sig 3868/SCTP 3868"))
	o.wait(t)
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	o.is(t, "Programmed", "True", "3868", "sctp")
	o.warns(t, "3868", "sctp")
	eventually(t, 10*time.Second, func() error { return o.portError(t, 3868, "eclusa.io/Unsupported") })
	alone := s.make(t, "alone", ports("sig 3868/SCTP 3868"))
	alone.is(t, "Programmed", "False", "sctp")
}

// A session is a UDP socket that keeps talking.
type session struct {
	conn  net.Conn
	at    netip.AddrPort
	first answer
}

// session begins a UDP session with the workload.
func (c caller) session(t *testing.T, at netip.AddrPort) *session {
	t.Helper()
	conn, err := c.dial(t.Context(), "udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	u := &session{conn: conn, at: at}
	eventually(t, 15*time.Second, func() (err error) {
		u.first, err = u.ask()
		return err
	})
	return u
}

func (u *session) ask() (answer, error) {
	text, err := exchange(u.conn, "question", 500*time.Millisecond)
	if err != nil {
		return answer{}, err
	}
	m := echoed.FindStringSubmatch(text)
	if m == nil {
		return answer{}, fmt.Errorf("udp %s: %q is no greeting", u.at, text)
	}
	return answer{pod: m[1], node: m[2], client: m[3]}, nil
}

// same wants the session to be the one that it was: with the same pod, which sees
// the same client.
func (u *session) same(t *testing.T) {
	t.Helper()
	switch a, err := u.ask(); {
	case err != nil:
		t.Errorf("the UDP session with %s broke: %v", u.at, err)
	case a != u.first:
		t.Errorf("the UDP session with %s is another one: %+v, was %+v", u.at, a, u.first)
	}
}
