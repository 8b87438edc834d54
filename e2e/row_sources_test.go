package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// oldSourceRanges is the annotation that came before the field.
const oldSourceRanges = corev1.AnnotationLoadBalancerSourceRangesKey

func ranges(prefixes ...string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = prefixes }
}

var sourceEntries = []entry{
	{section: "Source ranges", name: "IPv4, both protocols", run: func(t *testing.T, s *stage) {
		sources(t, s, false, ranges(guest(0).String()+"/32"), ranges(guest(1).String()+"/32"))
	}},
	{section: "Source ranges", name: "IPv6, both protocols", run: func(t *testing.T, s *stage) {
		sources(t, s, true, ranges(guest6(0).String()+"/128"), ranges(guest6(1).String()+"/128", "10.0.0.0/8"))
	}},
	{section: "Source ranges", name: "in the old annotation", run: func(t *testing.T, s *stage) {
		sources(t, s, false, annotated(oldSourceRanges, guest(0).String()+"/32"), annotated(oldSourceRanges, guest(1).String()+"/32, 2001:db8::/32"))
	}},
	{section: "Source ranges", name: "without any everybody may connect, in both families", run: everybody},
	{section: "Source ranges", name: "of one family shut the other out", run: oneFamily},
	{section: "Source ranges", name: "pods are seen with their own address", run: podSources},
}

// sources lets guest 0 in and nobody else, and after a change guest 1 and nobody
// else: what guest 0 had open ends.
func sources(t *testing.T, s *stage, six bool, first, then func(*corev1.Service)) {
	o := s.serve(t, "", dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo", "echo 7/TCP tcp-echo"), first)
	guests := []caller{{s.client, guest(0)}, {s.client, guest(1)}}
	if six {
		guests = []caller{{s.client, guest6(0)}, {s.client, guest6(1)}}
	}
	at, echo := o.of(t, six, 80), o.of(t, six, 7)
	for _, protocol := range protocols {
		guests[0].answers(t, protocol, at)
		guests[1].shutOut(t, protocol, at)
	}
	talk, session := guests[0].talk(t, echo), guests[0].session(t, at)

	o.change(t, then)
	select {
	case err := <-talk.done:
		if err == nil {
			t.Error("the long connection ended without an error before anybody ended it")
		}
	case <-time.After(5 * time.Second):
		t.Errorf("the long connection of %s goes on though it is not let in any more", guests[0])
	}
	for _, protocol := range protocols {
		guests[1].answers(t, protocol, at)
		guests[0].shutOut(t, protocol, at)
	}
	if a, err := session.ask(); err == nil {
		t.Errorf("the UDP session of %s is still answered by %s", guests[0], a.pod)
	}

	o.change(t, func(s *corev1.Service) {
		s.Spec.LoadBalancerSourceRanges = nil
		delete(s.Annotations, oldSourceRanges)
	})
	for _, protocol := range protocols {
		guests[0].answers(t, protocol, at)
	}
}

func everybody(t *testing.T, s *stage) {
	o := s.serve(t, "", dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo"))
	for _, a := range o.addrs {
		for _, protocol := range protocols {
			fromOutside.of(s).answers(t, protocol, netip.AddrPortFrom(a, 80))
			fromPod.of(s).answers(t, protocol, netip.AddrPortFrom(a, 80))
		}
	}
}

func oneFamily(t *testing.T, s *stage) {
	o := s.serve(t, "", dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo"), ranges("0.0.0.0/0"))
	for _, protocol := range protocols {
		fromOutside.of(s).answers(t, protocol, o.of(t, false, 80))
		fromOutside.of(s).shutOut(t, protocol, o.of(t, true, 80))
	}
	o.change(t, ranges("0.0.0.0/0", "::/0"))
	for _, protocol := range protocols {
		fromOutside.of(s).answers(t, protocol, o.of(t, true, 80))
	}
}

// The lab's network does not hide pods behind their nodes: edges see their own
// addresses.
func podSources(t *testing.T, s *stage) {
	o := s.serve(t, "", dualStack, ports("web 80/TCP http", "dns 80/UDP udp-echo", "echo 7/TCP tcp-echo"), ranges(s.inside.Addr4.String()+"/32", s.inside.Addr6.String()+"/128"))
	pod := fromPod.of(s)
	for _, six := range []bool{false, true} {
		for _, protocol := range protocols {
			pod.answers(t, protocol, o.of(t, six, 80))
			fromOutside.of(s).shutOut(t, protocol, o.of(t, six, 80))
		}
	}
	talk := pod.talk(t, o.at(7))
	// The ranges of the nodes are not those of the pods.
	o.change(t, ranges("172.30.0.0/24", "fd00:30::/64"))
	eventually(t, 5*time.Second, func() error {
		select {
		case err := <-talk.done:
			if err == nil {
				return errors.New("the long connection ended without an error")
			}
			return nil
		default:
			return fmt.Errorf("the long connection of %s goes on", pod)
		}
	})
	for _, six := range []bool{false, true} {
		for _, protocol := range protocols {
			pod.shutOut(t, protocol, o.of(t, six, 80))
		}
	}
}
