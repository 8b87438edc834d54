package provider

import (
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestStatusIsAccepted has a real API server take what is told of single ports and
// of an address of another family, and refuse what a plan says that it does.
func TestStatusIsAccepted(t *testing.T) {
	s := startAPIServer(t)
	edge := lbtest.NewFakeBalancer("e1")
	info, err := edge.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	info.Capabilities = append(info.Capabilities, lb.CapFamilyTranslation)
	edge.SetInfo(info)
	pool := testPool("default", "192.0.2.10-192.0.2.19", "2001:db8::6")
	pool.Spec.Sharing = "Always"
	createOwn(t, s, pool, testEdge("e1"))
	services := s.kube.CoreV1().Services("default")
	ports := testService("ports", 0, func(svc *v1.Service) {
		svc.Spec.Ports = append(svc.Spec.Ports,
			v1.ServicePort{Name: "signal", Protocol: v1.ProtocolSCTP, Port: 80}, v1.ServicePort{Name: "later", Protocol: v1.ProtocolTCP, Port: 81})
	})
	six := testService("six", 0, ofClass, annotated(AnnotationAddresses, "2001:db8::6"))
	for _, svc := range []*v1.Service{ports, six} {
		if _, err := services.Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	_, stop := s.serve(t, map[string]*lbtest.FakeBalancer{"e1": edge})
	defer stop()
	shows := func(name, want string) {
		t.Helper()
		var got string
		eventually(t, 20*time.Second, name+" tells "+want, func() bool {
			svc, err := services.Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			got = told(svc)
			return got == want
		})
	}
	shows("ports", "192.0.2.10 Proxy 80/TCP 80/SCTP=eclusa.io/Unsupported 81/TCP")
	shows("six", "2001:db8::6 Proxy 80/TCP") // others may share it

	change := func(how func(*v1.ServiceSpec)) {
		t.Helper()
		err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
			svc, err := services.Get(t.Context(), "ports", metav1.GetOptions{})
			if err != nil {
				return err
			}
			how(&svc.Spec)
			_, err = services.Update(t.Context(), svc, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	change(func(spec *v1.ServiceSpec) { // without allocation new ports have no node port
		spec.AllocateLoadBalancerNodePorts = ptr.To(false)
		spec.Ports = append(spec.Ports[:1:1], v1.ServicePort{Name: "more", Protocol: v1.ProtocolTCP, Port: 82})
	})
	shows("ports", "192.0.2.10 Proxy 80/TCP 82/TCP=eclusa.io/NoNodePort")
	change(func(spec *v1.ServiceSpec) { spec.AllocateLoadBalancerNodePorts = ptr.To(true) })
	shows("ports", "192.0.2.10 Proxy 80/TCP 82/TCP")

	headless := testService("headless", 0, func(svc *v1.Service) { svc.Spec.ClusterIP = v1.ClusterIPNone })
	if _, err := services.Create(t.Context(), headless, metav1.CreateOptions{}); err == nil {
		t.Error("a headless Service of type LoadBalancer was accepted")
	}
}
