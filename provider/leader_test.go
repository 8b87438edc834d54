package provider

import (
	"errors"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
)

func TestLeaseClaim(t *testing.T) {
	for _, test := range []struct {
		name      string
		change    func(*coordinationv1.LeaseSpec)
		notLeader bool
		want      string // in the error
	}{
		{"ours", func(*coordinationv1.LeaseSpec) {}, false, ""},
		{"another's", func(s *coordinationv1.LeaseSpec) { s.HolderIdentity = ptr.To("other") }, true, `is held by "other"`},
		{"given back", func(s *coordinationv1.LeaseSpec) { s.HolderIdentity = ptr.To("") }, true, "is held by nobody"},
		{"nobody's", func(s *coordinationv1.LeaseSpec) { s.HolderIdentity = nil }, true, "is held by nobody"},
		{"expired", func(s *coordinationv1.LeaseSpec) {
			s.RenewTime = &metav1.MicroTime{Time: time.Now().Add(-16 * time.Second)}
		}, true, "has expired"},
		{"without a time", func(s *coordinationv1.LeaseSpec) { s.RenewTime = nil }, true, "until when"},
	} {
		t.Run(test.name, func(t *testing.T) {
			lease := &coordinationv1.Lease{
				ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "eclusa", UID: "lease-uid"},
				Spec: coordinationv1.LeaseSpec{
					HolderIdentity: ptr.To("me"), LeaseTransitions: ptr.To(int32(4)),
					RenewTime: &metav1.MicroTime{Time: time.Now()}, LeaseDurationSeconds: ptr.To(int32(15)),
				},
			}
			test.change(&lease.Spec)
			system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "system-uid"}}
			got, err := LeaseClaim(fake.NewClientset(system, lease), "kube-system", "eclusa", "me")(t.Context())
			if test.want == "" {
				if want := (lb.Claim{ClusterUID: "system-uid", LeaseUID: "lease-uid", LeaseTransitions: 4, Holder: "me"}); err != nil || got != want {
					t.Errorf("got %+v, %v; want %+v", got, err, want)
				}
				return
			}
			if errors.Is(err, ErrNotLeader) != test.notLeader || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v; want ErrNotLeader and %q", err, test.want)
			}
		})
	}
}

func TestLeaseClaimWithoutObjects(t *testing.T) {
	_, err := LeaseClaim(fake.NewClientset(), "kube-system", "eclusa", "me")(t.Context())
	if err == nil || errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), `namespace "kube-system"`) {
		t.Errorf("got %v; want an error that names the namespace and is not ErrNotLeader", err)
	}
	system := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system", UID: "system-uid"}}
	_, err = LeaseClaim(fake.NewClientset(system), "kube-system", "eclusa", "me")(t.Context())
	if err == nil || errors.Is(err, ErrNotLeader) || !strings.Contains(err.Error(), `Lease "kube-system/eclusa"`) {
		t.Errorf("got %v; want an error that names the Lease and is not ErrNotLeader", err)
	}
}
