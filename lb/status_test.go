package lb_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

func TestStatusApply(t *testing.T) {
	up, down := lb.MemberStatus{State: healthcheck.Up, Since: claimed}, lb.MemberStatus{State: healthcheck.Down, Since: claimed, Reason: healthcheck.Refused}
	applied := lb.LoadBalancerStatus{Applied: true}
	held := lb.LoadBalancerStatus{Problems: []lb.Problem{{Type: "address-held"}}}

	var s lb.Status
	s.Apply(lb.StatusDelta{
		Cursor: "x.1", Full: true, Revision: 1, Digest: "d1", Epoch: "e1", Durable: true,
		LoadBalancers: map[lb.UID]*lb.LoadBalancerStatus{"u1": &applied, "u2": &held},
		Checks: map[lb.CheckID]*lb.CheckDelta{
			"c1": {Members: map[lb.NodeName]*lb.MemberStatus{"n1": &up, "n2": &up}},
			"c2": {Members: map[lb.NodeName]*lb.MemberStatus{"n1": &up}},
		},
	})
	first := lb.Status{
		Cursor: "x.1", Revision: 1, Digest: "d1", Epoch: "e1", Durable: true,
		LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{"u1": applied, "u2": held},
		Checks:        map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"c1": {"n1": up, "n2": up}, "c2": {"n1": up}},
	}
	if diff := cmp.Diff(first, s); diff != "" {
		t.Errorf("after a full delta (-want +got):\n%s", diff)
	}

	copied := s
	s.Apply(lb.StatusDelta{
		Cursor: "x.2", Revision: 2, Digest: "d2", Epoch: "e1",
		LoadBalancers: map[lb.UID]*lb.LoadBalancerStatus{"u1": nil, "u2": &applied, "u3": &held},
		Checks: map[lb.CheckID]*lb.CheckDelta{
			"c1": {Members: map[lb.NodeName]*lb.MemberStatus{"n1": &down, "n2": nil}},
			"c2": nil,
			"c3": {Members: map[lb.NodeName]*lb.MemberStatus{"n3": &up}},
		},
	})
	second := lb.Status{
		Cursor: "x.2", Revision: 2, Digest: "d2", Epoch: "e1",
		LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{"u2": applied, "u3": held},
		Checks:        map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{"c1": {"n1": down}, "c3": {"n3": up}},
	}
	if diff := cmp.Diff(second, s); diff != "" {
		t.Errorf("after a delta (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(first, copied); diff != "" {
		t.Errorf("a copy made before changed (-want +got):\n%s", diff)
	}

	s.Apply(lb.StatusDelta{Cursor: "x.2", Revision: 2, Digest: "d2", Epoch: "e1"})
	if diff := cmp.Diff(second, s); diff != "" {
		t.Errorf("after an empty delta (-want +got):\n%s", diff)
	}
	s.Apply(lb.StatusDelta{Cursor: "y.1", Full: true})
	if diff := cmp.Diff(lb.Status{Cursor: "y.1"}, s); diff != "" {
		t.Errorf("after a full delta of another instance (-want +got):\n%s", diff)
	}
}

func TestPolicyAdmits(t *testing.T) {
	c := large(3, 2)
	for _, test := range []struct {
		policy lb.Policy
		want   string
	}{
		{lb.Policy{}, ""},
		{lb.Policy{MaxLoadBalancers: 3, MaxListeners: 6, MaxNodes: 2}, ""},
		{lb.Policy{MaxLoadBalancers: 2, MaxListeners: 6, MaxNodes: 2}, "configuration has 3 load balancers where the edge allows 2: exhausted"},
		{lb.Policy{MaxLoadBalancers: 1, MaxListeners: 5, MaxNodes: 1}, "configuration has 3 load balancers where the edge allows 1, 6 listeners where the edge allows 5 (each counts for every address; \"namespace-0/service-with-a-name-0\" has most, 2), 2 nodes where the edge allows 1: exhausted"},
	} {
		got := ""
		if err := test.policy.Admits(lb.Config{}, c); err != nil {
			got = err.Error()
			if !errors.Is(err, lb.ErrExhausted) {
				t.Errorf("%v is no ErrExhausted", err)
			}
		}
		if got != test.want {
			t.Errorf("%+v:\n got %s\nwant %s", test.policy, got, test.want)
		}
		if err := test.policy.Admits(c, c); err != nil {
			t.Errorf("%+v: the same again: got %v; want it admitted, since nothing grows", test.policy, err)
		}
	}
	p := lb.Policy{MaxLoadBalancers: 1, MaxNodes: 1}
	err := p.Admits(large(2, 3), large(3, 3))
	if err == nil || !strings.Contains(err.Error(), "3 load balancers") || strings.Contains(err.Error(), "nodes") {
		t.Errorf("beyond two limits already, and growing in one: got %v; want that one named alone", err)
	}
	if err := p.Admits(large(3, 3), large(2, 3)); err != nil {
		t.Errorf("beyond the limits, and shrinking: got %v; want it admitted", err)
	}
}

func TestValidatePolicies(t *testing.T) {
	ranges := func(texts ...string) []netip.Prefix {
		var all []netip.Prefix
		for _, text := range texts {
			all = append(all, netip.MustParsePrefix(text))
		}
		return all
	}
	for _, test := range []struct {
		name     string
		policies map[lb.Cluster]lb.Policy
		want     []string
	}{
		{"apart", map[lb.Cluster]lb.Policy{
			"a": {AddressRanges: ranges("192.0.2.0/25", "2001:db8::/48"), NodeRanges: ranges("10.0.0.0/8")},
			"b": {AddressRanges: ranges("192.0.2.128/25", "2001:db8:1::/48"), NodeRanges: ranges("10.0.0.0/8")},
		}, nil},
		{"shared by both", map[lb.Cluster]lb.Policy{
			"a": {AddressRanges: ranges("192.0.2.0/24"), Shared: ranges("192.0.2.0/24")},
			"b": {AddressRanges: ranges("192.0.2.0/25"), Shared: ranges("192.0.2.0/25")},
		}, nil},
		{"shared by one", map[lb.Cluster]lb.Policy{
			"a": {AddressRanges: ranges("192.0.2.0/24"), Shared: ranges("192.0.2.0/24")},
			"b": {AddressRanges: ranges("192.0.2.0/25")},
		}, []string{`address ranges of clusters "a" and "b" overlap in 192.0.2.0/25: separate them, or mark it as shared for both: invalid`}},
		{"shared in part", map[lb.Cluster]lb.Policy{
			"a": {AddressRanges: ranges("192.0.2.0/24"), Shared: ranges("192.0.2.0/28")},
			"b": {AddressRanges: ranges("192.0.2.0/28", "192.0.2.64/28"), Shared: ranges("192.0.2.0/28", "192.0.2.64/28")},
		}, []string{`address ranges of clusters "a" and "b" overlap in 192.0.2.64/28: separate them, or mark it as shared for both: invalid`}},
		{"bad ranges", map[lb.Cluster]lb.Policy{
			"a": {AddressRanges: []netip.Prefix{{}}, Shared: ranges("192.0.2.0/24"), NodeRanges: ranges("10.0.0.1/8"), MaxNodes: -1},
		}, []string{
			`cluster "a": range invalid Prefix is not a range with all bits behind its length zero: invalid`,
			`cluster "a": range 10.0.0.1/8 is not a range with all bits behind its length zero: invalid`,
			`cluster "a": shared range 192.0.2.0/24 is not within its address ranges invalid Prefix: invalid`,
			`cluster "a": a limit is negative; zero is unlimited: invalid`,
		}},
	} {
		var got []string
		for _, err := range lb.ValidatePolicies(test.policies) {
			if !errors.Is(err, lb.ErrInvalid) {
				t.Errorf("%s: %v is no ErrInvalid", test.name, err)
			}
			got = append(got, err.Error())
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("%s: faults differ (-want +got):\n%s", test.name, diff)
		}
	}
}
