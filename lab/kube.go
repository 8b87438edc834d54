package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
)

const apiserverUser = "kube-apiserver-kubelet"

// rbac are the roles of those users of the lab that Kubernetes does not know by
// itself.
//
//go:embed rbac.yaml
var rbac []byte

// audit says what the API server writes down of what it is asked.
//
//go:embed audit.yaml
var audit []byte

// AuditLog is the file in which the API server writes down what eclusa asks of
// it, an event in JSON on each line.
func (l *Lab) AuditLog() string { return l.logPath("audit") }

// Kubeconfig is the file with which an administrator reaches the cluster from
// inside the control plane's network.
func (l *Lab) Kubeconfig() string { return l.kubeconfig("admin") }

// Kubectl is a script that runs kubectl on this lab from anywhere on the
// machine.
func (l *Lab) Kubectl() string { return l.path("kubectl") }

// RESTConfig is an administrator's access to the cluster for this process. It
// dials inside the control plane's network, since there is no route from
// outside, and limits no rates.
func (l *Lab) RESTConfig() (*rest.Config, error) {
	c, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig())
	if err != nil {
		return nil, err
	}
	c.Dial = l.ControlPlane.DialContext
	c.Proxy = nil
	c.QPS = -1
	return c, nil
}

// Clientset is a client of the cluster's API with an administrator's rights.
func (l *Lab) Clientset() (kubernetes.Interface, error) {
	c, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(c)
}

// Dynamic is the same for objects of any kind.
func (l *Lab) Dynamic() (dynamic.Interface, error) {
	c, err := l.RESTConfig()
	if err != nil {
		return nil, err
	}
	return dynamic.NewForConfig(c)
}

// Apply applies the objects of a YAML stream (server-side apply, as
// kubectl apply --server-side does), and waits for new kinds to be served.
func (l *Lab) Apply(ctx context.Context, manifests []byte) error {
	objects, err := decode(manifests)
	if err != nil {
		return err
	}
	clients, err := l.Clientset()
	if err != nil {
		return err
	}
	objectsOf, err := l.Dynamic()
	if err != nil {
		return err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(clients.Discovery()))
	for _, o := range objects {
		err := until(ctx, 15*time.Second, func(ctx context.Context) error {
			return applyOne(ctx, objectsOf, mapper, o)
		})
		if err != nil {
			return fmt.Errorf("apply %s %q: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

func applyOne(ctx context.Context, client dynamic.Interface, mapper *restmapper.DeferredDiscoveryRESTMapper, o *unstructured.Unstructured) error {
	gvk := o.GroupVersionKind()
	m, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		mapper.Reset()
		return err
	}
	var where dynamic.ResourceInterface = client.Resource(m.Resource)
	if m.Scope.Name() == meta.RESTScopeNameNamespace {
		ns := o.GetNamespace()
		if ns == "" {
			ns = metav1.NamespaceDefault
		}
		where = client.Resource(m.Resource).Namespace(ns)
	}
	_, err = where.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: "eclusa-lab", Force: true})
	return err
}

// decode reads the objects of a YAML stream.
func decode(manifests []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifests), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := d.Decode(o)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("manifest %d: %w", len(objects)+1, err)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// writeKubectl writes the script that Kubectl names. It keeps the shell's
// working directory and files, and changes nothing but the network. The
// configuration is in the environment, since kubectl takes no flag before the name
// of a plugin.
func (l *Lab) writeKubectl() error {
	script := fmt.Sprintf("#!/bin/sh\nexport KUBECONFIG=%s\nexec nsenter --net=%s %s \"$@\"\n",
		quote(l.Kubeconfig()), l.ControlPlane.NetNS(), quote(l.program("kubectl")))
	return os.WriteFile(l.Kubectl(), []byte(script), 0o755)
}

// quote makes one word of the shell out of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
