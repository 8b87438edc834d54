package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sort"
	"strings"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"sigs.k8s.io/yaml"
)

// apiServer is as much of a Kubernetes API server as the program needs: it keeps
// objects in memory, lists, reads and patches them, refuses what it is told to,
// and forwards ports.
type apiServer struct {
	token string // who may do anything

	mu       sync.Mutex
	objects  map[string]*unstructured.Unstructured // by path
	deny     []string                              // beginnings of "verb path" that are refused
	requests []string                              // "verb path" of all
	logs     map[string]string                     // by pod
	forward  func() (net.Conn, error)
}

// resources are the kinds that it knows.
var resources = map[string]struct {
	prefix, plural string
	namespaced     bool
}{
	"Namespace":     {"/api/v1", "namespaces", false},
	"Node":          {"/api/v1", "nodes", false},
	"Service":       {"/api/v1", "services", true},
	"Pod":           {"/api/v1", "pods", true},
	"Event":         {"/api/v1", "events", true},
	"ConfigMap":     {"/api/v1", "configmaps", true},
	"Secret":        {"/api/v1", "secrets", true},
	"Deployment":    {"/apis/apps/v1", "deployments", true},
	"Lease":         {"/apis/coordination.k8s.io/v1", "leases", true},
	"EndpointSlice": {"/apis/discovery.k8s.io/v1", "endpointslices", true},
	"AddressPool":   {"/apis/eclusa.io/v1alpha1", "addresspools", false},
	"Edge":          {"/apis/eclusa.io/v1alpha1", "edges", false},
}

// load adds the objects of a YAML stream, in place of those of the same name.
func (s *apiServer) load(stream []byte) error {
	for i, doc := range strings.Split(string(stream), "\n---\n") {
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(doc), &u.Object); err != nil {
			return fmt.Errorf("document %d: %w", i, err)
		}
		r, ok := resources[u.GetKind()]
		if !ok {
			return fmt.Errorf("document %d: kind %q is not known here", i, u.GetKind())
		}
		path := r.prefix
		if r.namespaced {
			path += "/namespaces/" + u.GetNamespace()
		}
		s.objects[path+"/"+r.plural+"/"+u.GetName()] = u
	}
	return nil
}

// all returns the objects of a kind, by path.
func (s *apiServer) all(kind string) []*unstructured.Unstructured {
	r := resources[kind]
	var paths []string
	for p := range s.objects {
		parts := strings.Split(strings.TrimPrefix(p, r.prefix+"/"), "/")
		if strings.HasPrefix(p, r.prefix+"/") && len(parts) >= 2 && parts[len(parts)-2] == r.plural {
			paths = append(paths, p)
		}
	}
	sort.Strings(paths)
	var out []*unstructured.Unstructured
	for _, p := range paths {
		out = append(out, s.objects[p])
	}
	return out
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	line := r.Method + " " + r.URL.Path
	s.requests = append(s.requests, line)
	refuse := func(code int, reason metav1.StatusReason, message string) {
		reply(w, code, metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message,
		})
	}
	switch {
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		refuse(http.StatusUnauthorized, metav1.StatusReasonUnauthorized, "Unauthorized")
		return
	case slices.ContainsFunc(s.deny, func(d string) bool { return strings.HasPrefix(line, d) }):
		refuse(http.StatusForbidden, metav1.StatusReasonForbidden, fmt.Sprintf("User \"jane\" may not %s", line))
		return
	case r.URL.Path == "/version":
		reply(w, http.StatusOK, map[string]string{"gitVersion": "v1.37.2", "major": "1", "minor": "37"})
		return
	case strings.HasSuffix(r.URL.Path, "/portforward"):
		s.mu.Unlock()
		s.forwardPort(w, r)
		s.mu.Lock()
		return
	case strings.HasSuffix(r.URL.Path, "/log"):
		parts := strings.Split(r.URL.Path, "/")
		_, _ = io.WriteString(w, s.logs[parts[len(parts)-2]])
		return
	}
	if o, ok := s.objects[r.URL.Path]; ok {
		if r.Method == http.MethodPatch {
			patched, err := s.patch(o, r)
			if err != nil {
				refuse(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
				return
			}
			s.objects[r.URL.Path], o = patched, patched
		}
		reply(w, http.StatusOK, o)
		return
	}
	for kind, res := range resources {
		if !strings.HasPrefix(r.URL.Path, res.prefix+"/") || !strings.HasSuffix(r.URL.Path, "/"+res.plural) {
			continue
		}
		namespace := strings.TrimPrefix(strings.TrimSuffix(r.URL.Path, res.plural), res.prefix+"/")
		namespace = strings.Trim(strings.TrimPrefix(namespace, "namespaces"), "/")
		selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
		if err != nil {
			refuse(http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
			return
		}
		items := []any{}
		for _, o := range s.all(kind) {
			if (namespace == "" || o.GetNamespace() == namespace) && selector.Matches(labels.Set(o.GetLabels())) {
				items = append(items, o.Object)
			}
		}
		first := strings.TrimPrefix(strings.TrimPrefix(res.prefix, "/apis/"), "/api/")
		reply(w, http.StatusOK, map[string]any{"kind": kind + "List", "apiVersion": first, "metadata": map[string]any{"resourceVersion": "1"}, "items": items})
		return
	}
	parts := strings.Split(r.URL.Path, "/")
	refuse(http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", parts[len(parts)-2], parts[len(parts)-1]))
}

func (s *apiServer) patch(o *unstructured.Unstructured, r *http.Request) (*unstructured.Unstructured, error) {
	if r.Header.Get("Content-Type") != "application/merge-patch+json" {
		return nil, fmt.Errorf("patch of type %q is not known here", r.Header.Get("Content-Type"))
	}
	patch, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	before, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	after, err := jsonpatch.MergePatch(before, patch)
	if err != nil {
		return nil, err
	}
	u := &unstructured.Unstructured{}
	return u, u.UnmarshalJSON(after)
}

// forwardPort speaks the protocol of port-forward over SPDY, as kubelets do.
func (s *apiServer) forwardPort(w http.ResponseWriter, r *http.Request) {
	if _, err := httpstream.Handshake(r, w, []string{"portforward.k8s.io"}); err != nil {
		return // a websocket, which this server does not know
	}
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
		if stream.Headers().Get("streamType") != "data" {
			return nil
		}
		go func() {
			defer stream.Close()
			to, err := s.forward()
			if err != nil {
				return
			}
			defer to.Close()
			done := make(chan struct{})
			go func() {
				_, _ = io.Copy(to, stream)
				close(done)
			}()
			_, _ = io.Copy(stream, to)
			<-done
		}()
		return nil
	})
	if conn != nil {
		<-conn.CloseChan()
	}
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
