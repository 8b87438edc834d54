package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var familyEntries = append(append(
	both(entry{section: "Dual stack", name: "single, preferred and required"}, families),
	both(entry{section: "Dual stack", name: "clients of one family, members of the other"}, translated)...),
	entry{section: "Dual stack", name: "required and not to be had is refused", run: familyMissing},
)

// families makes a Service of each kind that ipFamilies and ipFamilyPolicy allow.
func families(t *testing.T, s *stage, from caller) {
	for _, c := range []struct {
		name     string
		policy   corev1.IPFamilyPolicy
		families []corev1.IPFamily
		want     string // families of the addresses in their order
	}{
		{"four", corev1.IPFamilyPolicySingleStack, []corev1.IPFamily{corev1.IPv4Protocol}, "4"},
		{"six", corev1.IPFamilyPolicySingleStack, []corev1.IPFamily{corev1.IPv6Protocol}, "6"},
		{"prefer", corev1.IPFamilyPolicyPreferDualStack, []corev1.IPFamily{corev1.IPv6Protocol, corev1.IPv4Protocol}, "64"},
		{"require", corev1.IPFamilyPolicyRequireDualStack, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}, "46"},
	} {
		o := s.serve(t, c.name, ports("web 80/TCP http", "dns 80/UDP udp-echo"), func(svc *corev1.Service) {
			svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = &c.policy, c.families
		})
		if got := familiesOf(o.addrs); got != c.want {
			t.Errorf("%s: addresses %v, want of families %s in this order", c.name, o.addrs, c.want)
		}
		for _, a := range o.addrs {
			for _, protocol := range protocols {
				from.answers(t, protocol, netip.AddrPortFrom(a, 80))
			}
		}
	}
}

func familiesOf(addrs []netip.Addr) string {
	text := ""
	for _, a := range addrs {
		if a.Is4() {
			text += "4"
		} else {
			text += "6"
		}
	}
	return text
}

// translated asks for an address of a family that the Service's pods do not have.
func translated(t *testing.T, s *stage, from caller) {
	last := 241
	if from.host == s.inside {
		last = 243
	}
	for i, family := range []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol} {
		o := s.serve(t, strings.ToLower(string(family)), ports("web 80/TCP http", "dns 80/UDP udp-echo"),
			annotated("addresses", fmt.Sprintf("172.30.0.%d,fd00:30::%d", last+i, last+i)),
			func(svc *corev1.Service) {
				svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies = ptr(corev1.IPFamilyPolicySingleStack), []corev1.IPFamily{family}
			})
		eventually(t, 10*time.Second, func() error {
			if o.wait(t); len(o.addrs) != 2 {
				return fmt.Errorf("service %q has addresses %v, want one of each family", o.name, o.addrs)
			}
			return nil
		})
		for _, a := range o.addrs {
			for _, protocol := range protocols {
				from.answers(t, protocol, netip.AddrPortFrom(a, 80))
			}
		}
		// The other family goes when nobody asks for it any more.
		own := o.of(t, family == corev1.IPv6Protocol, 80)
		o.change(t, annotated("addresses", own.Addr().String()))
		from.unanswered(t, "tcp", o.of(t, family != corev1.IPv6Protocol, 80))
		from.answers(t, "tcp", own)
	}
}

func familyMissing(t *testing.T, s *stage) {
	s.pool(t, "e2e-one-family", map[string]any{"addresses": []any{"172.30.0.198-172.30.0.199"}, "autoAssign": false})
	required := s.make(t, "require", dualStack, annotated("address-pool", "e2e-one-family"))
	required.is(t, "AddressAssigned", "False", "IPv6", "e2e-one-family")
	required.warns(t, "IPv6")
	preferred := s.serve(t, "prefer", annotated("address-pool", "e2e-one-family"), func(svc *corev1.Service) {
		svc.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyPreferDualStack)
	})
	if familiesOf(preferred.addrs) != "4" {
		t.Errorf("addresses %v, want one of IPv4 only", preferred.addrs)
	}
	fromOutside.of(s).answers(t, "tcp", preferred.at(80))
}

var addressEntries = []entry{
	{section: "Addresses", name: "changing the request moves the address", run: addressMoves},
	{section: "Addresses", name: "spec.loadBalancerIP", run: loadBalancerIP},
	{section: "Addresses", name: "one of each family in the annotation", run: severalAddresses},
	{section: "Addresses", name: "pools by name, namespace and labels", run: namedPools},
	{section: "Addresses", name: "what cannot be had is refused with the remedy", run: refusedAddresses},
	{section: "Conflicts", name: "the older claim has it and the other names it", run: olderClaim},
}

func addressMoves(t *testing.T, s *stage) {
	o := s.serve(t, "", annotated("addresses", "172.30.0.245"))
	from := fromOutside.of(s)
	from.answers(t, "tcp", o.at(80))
	before := o.at(80)
	o.change(t, annotated("addresses", "172.30.0.246"))
	eventually(t, 10*time.Second, func() error { return o.has(t, "172.30.0.246") })
	from.answers(t, "tcp", o.at(80))
	from.unanswered(t, "tcp", before)
	// Somebody else may have the old one soon.
	other := s.serve(t, "next", annotated("addresses", "172.30.0.245"))
	from.answers(t, "tcp", other.at(80))
}

// has returns an error unless these are the Service's addresses, and notes them.
func (o *served) has(t *testing.T, want ...string) error {
	t.Helper()
	o.wait(t)
	var got []string
	for _, a := range o.addrs {
		got = append(got, a.String())
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("service %q has addresses %v, want %v", o.name, got, want)
	}
	return nil
}

func loadBalancerIP(t *testing.T, s *stage) {
	o := s.serve(t, "", func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = "172.30.0.247" })
	if err := o.has(t, "172.30.0.247"); err != nil {
		t.Error(err)
	}
	fromOutside.of(s).answers(t, "tcp", o.at(80))
	o.change(t, func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = "172.30.0.248" })
	eventually(t, 10*time.Second, func() error { return o.has(t, "172.30.0.248") })
	fromOutside.of(s).answers(t, "tcp", o.at(80))
}

func severalAddresses(t *testing.T, s *stage) {
	o := s.serve(t, "", dualStack, annotated("addresses", "fd00:30::249, 172.30.0.249"))
	for _, want := range []string{"172.30.0.249", "fd00:30::249"} {
		a := netip.MustParseAddr(want)
		if !slices.Contains(o.addrs, a) {
			t.Errorf("addresses %v, want %s among them", o.addrs, a)
		}
		fromOutside.of(s).answers(t, "tcp", netip.AddrPortFrom(a, 80))
	}
}

func namedPools(t *testing.T, s *stage) {
	s.pool(t, "e2e-named", map[string]any{"addresses": []any{"172.30.0.192-172.30.0.193"}, "autoAssign": false})
	s.pool(t, "e2e-selected", map[string]any{
		"addresses": []any{"172.30.0.194"}, "autoAssign": false,
		"namespaceSelector": map[string]any{"matchLabels": map[string]any{corev1.LabelMetadataName: s.ns}},
		"serviceSelector":   map[string]any{"matchLabels": map[string]any{"tier": "public"}},
	})
	named := s.serve(t, "named", annotated("address-pool", "e2e-named"))
	if !slices.Contains([]string{"172.30.0.192", "172.30.0.193"}, named.addrs[0].String()) {
		t.Errorf("address %s is not of the pool that was named", named.addrs[0])
	}
	fromOutside.of(s).answers(t, "tcp", named.at(80))
	plain := s.serve(t, "plain")
	if a := plain.addrs[0]; a.Compare(netip.MustParseAddr("172.30.0.200")) < 0 {
		t.Errorf("address %s was given unasked from a pool with autoAssign false", a)
	}
	stranger := s.make(t, "stranger", annotated("address-pool", "e2e-selected"))
	stranger.is(t, "AddressAssigned", "False", "e2e-selected")
	public := func(svc *corev1.Service) { svc.Labels = map[string]string{"tier": "public"} }
	stranger.change(t, public)
	eventually(t, 10*time.Second, func() error { return stranger.has(t, "172.30.0.194") })
	fromOutside.of(s).answers(t, "tcp", stranger.at(80))
	elsewhere := s.makeIn(t, s.ownNamespace(t), "elsewhere", public, annotated("address-pool", "e2e-selected"))
	elsewhere.is(t, "AddressAssigned", "False", "e2e-selected")
}

func refusedAddresses(t *testing.T, s *stage) {
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
		words  []string
	}{
		{"outside", annotated("addresses", "192.0.2.1"), []string{"192.0.2.1", "pool"}},
		{"nonsense", annotated("addresses", "300.0.0.1"), []string{"eclusa.io/addresses", "300.0.0.1", "must be"}},
		{"twice", annotated("addresses", "172.30.0.233,172.30.0.234"), []string{"eclusa.io/addresses", "at most one"}},
		{"nowhere", annotated("address-pool", "nowhere"), []string{"nowhere"}},
		{"field", func(svc *corev1.Service) { svc.Spec.LoadBalancerIP = "192.0.2.7" }, []string{"192.0.2.7", "pool"}},
	} {
		o := s.make(t, c.name, c.change)
		o.is(t, "AddressAssigned", "False", c.words...)
		o.warns(t, c.words...)
		if in := o.get(t).Status.LoadBalancer.Ingress; len(in) > 0 {
			t.Errorf("%s: the Service has addresses %v, want none", c.name, in)
		}
	}
}

// Two Services ask for the same address and port: the older claim has it, the
// later stays pending and says who is in the way, until that one goes.
func olderClaim(t *testing.T, s *stage) {
	const contested = "172.30.0.240"
	first := s.serve(t, "first", annotated("addresses", contested))
	if err := first.has(t, contested); err != nil {
		t.Fatal(err)
	}
	from := fromOutside.of(s)
	talk := s.serveEcho(t, "beside").startTalk(t)
	second := s.make(t, "second", annotated("addresses", contested))
	second.is(t, "AddressAssigned", "False", first.ns+"/"+first.name, contested)
	second.warns(t, first.ns+"/"+first.name, contested)
	if in := second.get(t).Status.LoadBalancer.Ingress; len(in) > 0 {
		t.Errorf("second has ingress %v, want none", in)
	}
	from.answers(t, "tcp", first.at(80))

	first.remove(t)
	eventually(t, 10*time.Second, func() error { return second.has(t, contested) })
	from.answers(t, "tcp", second.at(80))
	if err := talk.end(); err != nil {
		t.Errorf("a connection to another Service broke meanwhile: %v", err)
	}
}

// serveEcho serves the echo port, for long connections that nothing must disturb.
func (s *stage) serveEcho(t *testing.T, name string) *served {
	t.Helper()
	return s.serve(t, name, ports("echo 7/TCP tcp-echo"))
}

func (o *served) startTalk(t *testing.T) *talk {
	t.Helper()
	return fromOutside.of(o.stage).talk(t, o.at(7))
}

var sharingEntries = []entry{
	{section: "Address sharing", name: "one address for a whole site", run: singleAddress},
	{section: "Address sharing", name: "what is not compatible is refused", run: notShared},
}

// singleAddress is a site with one public address for everything.
func singleAddress(t *testing.T, s *stage) {
	const only = "172.30.0.196"
	s.pool(t, "e2e-single", map[string]any{"addresses": []any{only}, "autoAssign": false, "sharing": "Always"})
	share := annotated("address-pool", "e2e-single")
	web := s.serve(t, "web", share, ports("web 80/TCP http", "tls 443/TCP http"))
	// Of another namespace, with a stand-in for pods: nobody asks for a key.
	dns := s.makeIn(t, s.ownNamespace(t), "dns", share, ports("dns 53/UDP udp-echo"), func(svc *corev1.Service) { svc.Spec.Selector = nil })
	dns.endpoint(t, s.inside.Addr4, s.Nodes[0], 7001)
	dns.wait(t)
	echo := s.serve(t, "echo", share, ports("echo 7/TCP tcp-echo"))
	from := fromOutside.of(s)
	for _, o := range []*served{web, dns, echo} {
		if err := o.has(t, only); err != nil {
			t.Error(err)
		}
	}
	from.answers(t, "tcp", web.at(443))
	from.answers(t, "udp", dns.at(53))
	talk := echo.startTalk(t)
	late := s.make(t, "late", share, ports("tls 443/TCP http", "more 444/TCP http"))
	late.is(t, "AddressAssigned", "False", web.ns+"/"+web.name, "443")
	// Who has the address and adds somebody else's port goes on with the others.
	echo.change(t, ports("echo 7/TCP tcp-echo", "web 80/TCP http"))
	eventually(t, 10*time.Second, func() error { return echo.portError(t, 80, "eclusa.io/PortInUse") })
	echo.is(t, "Programmed", "True", web.ns+"/"+web.name, "80")
	from.answers(t, "tcp", web.at(80))
	web.remove(t)
	from.answers(t, "tcp", echo.at(80))
	echo.change(t, ports("echo 7/TCP tcp-echo"))
	from.refused(t, "tcp", web.at(80))
	from.answers(t, "udp", dns.at(53))
	if err := talk.end(); err != nil {
		t.Errorf("the connection to one Service broke with another on the same address: %v", err)
	}
}

// portError returns an error unless the status says this of a port, and of others
// that they are well.
func (o *served) portError(t *testing.T, port int32, want string) error {
	t.Helper()
	in := o.get(t).Status.LoadBalancer.Ingress
	for _, i := range in {
		for _, p := range i.Ports {
			if has := p.Error != nil && *p.Error == want; has != (p.Port == port) {
				return fmt.Errorf("the status says of ports %+v, want %q of %d only", i.Ports, want, port)
			}
		}
	}
	if len(in) == 0 || len(in[0].Ports) == 0 {
		return fmt.Errorf("the status %+v says nothing of ports, want %q of %d", in, want, port)
	}
	return nil
}

func notShared(t *testing.T, s *stage) {
	share := func(key string) func(*corev1.Service) {
		return annotated("sharing-key", key, "addresses", "172.30.0.250")
	}
	first := s.serve(t, "first", share("a"))
	from := fromOutside.of(s)
	from.answers(t, "tcp", first.at(80))
	samePort := s.make(t, "same-port", share("a"))
	samePort.is(t, "AddressAssigned", "False", first.ns+"/"+first.name, "80")
	otherKey := s.make(t, "other-key", share("b"), ports("dns 53/UDP udp-echo"))
	otherKey.is(t, "AddressAssigned", "False", first.ns+"/"+first.name)
	noKey := s.make(t, "no-key", annotated("addresses", "172.30.0.250"), ports("dns 53/UDP udp-echo"))
	noKey.is(t, "AddressAssigned", "False", first.ns+"/"+first.name, "share")
	from.answers(t, "tcp", first.at(80))
}

var addressPools = schema.GroupVersionResource{Group: "eclusa.io", Version: "v1alpha1", Resource: "addresspools"}

// pool makes an AddressPool, waits until it is ready, and deletes it at the end.
func (c *cluster) pool(t *testing.T, name string, spec map[string]any) {
	t.Helper()
	pools := c.dynamic.Resource(addressPools)
	o := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPool", "metadata": map[string]any{"name": name}, "spec": spec,
	}}
	if _, err := pools.Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pools.Delete(cleanup(t), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	eventually(t, 15*time.Second, func() error {
		got, err := pools.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, err := unstructured.NestedSlice(got.Object, "status", "conditions")
		if err != nil {
			return err
		}
		for _, c := range conditions {
			if m, ok := c.(map[string]any); ok && m["type"] == "Ready" && m["status"] == "True" {
				return nil
			}
		}
		return errors.Join(fmt.Errorf("pool %q is not ready: %v", name, conditions))
	})
}
