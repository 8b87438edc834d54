package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Namespace makes a namespace and waits until pods can be made in it.
func (l *Lab) Namespace(ctx context.Context, name string) error {
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	_, err = clients.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	return until(ctx, 20*time.Second, func(ctx context.Context) error {
		_, err := clients.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Deployment describes pods of the workload image, spread over the nodes,
// labelled app=name. The caller may change it before creating it.
func Deployment(namespace, name string, replicas int32) *appsv1.Deployment {
	labels := map[string]string{"app": name}
	field := func(name, path string) corev1.EnvVar {
		return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}}
	}
	container := corev1.Container{
		Name: "workload", Image: WorkloadImage, ImagePullPolicy: corev1.PullNever,
		Env: []corev1.EnvVar{field("POD_NAME", "metadata.name"), field("NODE_NAME", "spec.nodeName")},
		Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080},
			{Name: "https", ContainerPort: 8443},
			{Name: "tcp-echo", ContainerPort: 7000},
			{Name: "udp-echo", ContainerPort: 7001, Protocol: corev1.ProtocolUDP},
		},
		ReadinessProbe: &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromString("http")},
		}},
	}
	grace := int64(1)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec: corev1.PodSpec{
					Containers:                    []corev1.Container{container},
					TerminationGracePeriodSeconds: &grace,
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
						LabelSelector: &metav1.LabelSelector{MatchLabels: labels},
					}},
				},
			},
		},
	}
}

// Service describes a LoadBalancer Service in front of the pods labelled
// app=name, with HTTP on port 80. The caller may change it before creating it.
func Service(namespace, name string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.ServiceSpec{
			Type:     corev1.ServiceTypeLoadBalancer,
			Selector: map[string]string{"app": name},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}
}

// Deploy creates the Deployment and waits until all its pods are available.
func (l *Lab) Deploy(ctx context.Context, d *appsv1.Deployment) error {
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	if _, err := clients.AppsV1().Deployments(d.Namespace).Create(ctx, d, metav1.CreateOptions{}); err != nil {
		return err
	}
	return l.WaitDeployment(ctx, d.Namespace, d.Name)
}

// WaitDeployment waits, two minutes at most, until all pods of the newest
// version are available.
func (l *Lab) WaitDeployment(ctx context.Context, namespace, name string) error {
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	err = until(ctx, 2*time.Minute, func(ctx context.Context) error {
		d, err := clients.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		want, s := *d.Spec.Replicas, d.Status
		if s.ObservedGeneration < d.Generation || s.UpdatedReplicas != want || s.AvailableReplicas != want || s.Replicas != want {
			return fmt.Errorf("%d of %d pods are available", s.AvailableReplicas, want)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("deployment %q: %w", namespace+"/"+name, err)
	}
	return nil
}

// WaitAddress waits, a minute at most, until the Service has an address in its
// status, and returns all of them.
func (l *Lab) WaitAddress(ctx context.Context, namespace, name string) ([]netip.Addr, error) {
	clients, err := l.Clientset()
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	err = until(ctx, time.Minute, func(ctx context.Context) error {
		s, err := clients.CoreV1().Services(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if addrs, err = Ingress(s); err == nil && len(addrs) == 0 {
			return fmt.Errorf("no address yet, conditions %v", s.Status.Conditions)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("service %q: %w", namespace+"/"+name, err)
	}
	return addrs, nil
}

// Ingress are the addresses in the Service's status.
func Ingress(s *corev1.Service) ([]netip.Addr, error) {
	var addrs []netip.Addr
	for _, in := range s.Status.LoadBalancer.Ingress {
		a, err := netip.ParseAddr(in.IP)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, a)
	}
	return addrs, nil
}

// NodePort is the node port of the Service's port with this number; 0 if it has
// none.
func NodePort(s *corev1.Service, port int32) int32 {
	for _, p := range s.Spec.Ports {
		if p.Port == port {
			return p.NodePort
		}
	}
	return 0
}
