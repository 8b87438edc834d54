package provider

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	kubetesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// epoch is when everything in pure tests happens.
var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// simulation lets a decider decide again and again, with everything that it
// writes coming true.
type simulation struct {
	t       *testing.T
	world   World
	slices  map[string][]*discoveryv1.EndpointSlice
	decider *decider
	version int
	events  []string
	wanted  map[string]Wanted
	sick    map[lb.NodeName]healthcheck.State
	// held is what each edge last told, lost are those out of reach, and failing
	// decides which writes fail, none if it is nil.
	held    map[string]EdgeState
	lost    map[string]bool
	failing *rand.Rand
	// able is what edges can do besides what every edge can, but for plain ones.
	able  []lb.Capability
	plain map[string]bool
	// lags says that edges do what they acknowledge a round later, and let the last
	// connections to addresses end in the rounds after.
	lags   bool
	acting map[string]acting
}

// acting is what an edge that lags has acknowledged and is about to do, and which
// addresses it has meanwhile.
type acting struct {
	next    lb.Status
	due     map[lb.UID][]netip.Addr
	has     map[lb.UID][]netip.Addr
	leaving []lingering
}

// lingering is an address to which connections go on for so many rounds.
type lingering struct {
	uid    lb.UID
	addr   netip.Addr
	rounds int
}

func newSimulation(t *testing.T) *simulation {
	s := &simulation{t: t, decider: newDecider(), slices: map[string][]*discoveryv1.EndpointSlice{}, sick: map[lb.NodeName]healthcheck.State{},
		held: map[string]EdgeState{}, lost: map[string]bool{}, acting: map[string]acting{}}
	s.world = World{
		Now: epoch, Controllers: Controllers{Stock: true, Class: true},
		Namespaces: map[string]labels.Set{"default": {v1.LabelMetadataName: "default"}}, Fleet: map[string]EdgeState{},
		Endpoints: func(ns, name string) Endpoints { return ReadEndpoints(s.slices[ns+"/"+name]) },
	}
	return s
}

// read adds the objects of a YAML stream.
func (s *simulation) read(stream []byte) {
	s.t.Helper()
	for i, doc := range bytes.Split(stream, []byte("\n---\n")) {
		var m struct {
			metav1.TypeMeta `json:",inline"`
		}
		if err := yaml.Unmarshal(doc, &m); err != nil {
			s.t.Fatalf("document %d: %v", i, err)
		}
		into := func(o metav1.Object) {
			if err := yaml.UnmarshalStrict(doc, o); err != nil {
				s.t.Fatalf("document %d: %v", i, err)
			}
			s.stamp(o, i)
		}
		switch m.Kind {
		case "Service":
			o := &v1.Service{}
			into(o)
			s.world.Services = append(s.world.Services, o)
		case "Node":
			o := &v1.Node{}
			into(o)
			s.world.Nodes = append(s.world.Nodes, o)
		case "EndpointSlice":
			o := &discoveryv1.EndpointSlice{}
			into(o)
			key := o.Namespace + "/" + o.Labels[discoveryv1.LabelServiceName]
			s.slices[key] = append(s.slices[key], o)
		case "AddressPool":
			o := &v1alpha1.AddressPool{}
			into(o)
			s.world.Pools = append(s.world.Pools, o)
		case "Edge":
			o := &v1alpha1.Edge{}
			into(o)
			s.world.Edges = append(s.world.Edges, o)
		default:
			s.t.Fatalf("document %d: kind %q is not known here", i, m.Kind)
		}
	}
}

// stamp fills in what an API server would.
func (s *simulation) stamp(o metav1.Object, i int) {
	if o.GetUID() == "" {
		o.SetUID(types.UID("uid-" + o.GetName()))
	}
	if o.GetNamespace() == "" {
		switch o.(type) {
		case *v1.Service, *discoveryv1.EndpointSlice:
			o.SetNamespace("default")
		}
	}
	if ts := o.GetCreationTimestamp(); ts.IsZero() {
		o.SetCreationTimestamp(metav1.NewTime(epoch.Add(time.Duration(i-1000) * time.Second)))
	}
	s.version++
	o.SetResourceVersion(fmt.Sprint(s.version))
}

// round decides once and lets everything come true. It says whether anything
// was written.
func (s *simulation) round() bool {
	s.t.Helper()
	d := s.decider.decide(s.world)
	s.wanted = d.Wanted
	s.checkOrder()
	for _, n := range d.Notes {
		if n.Event != nil {
			s.events = append(s.events, fmt.Sprintf("node %s %s %s: %s", n.Object, n.Event.Type, n.Event.Reason, n.Event.Message))
		}
	}
	for _, t := range slices.SortedFunc(maps.Keys(d.Writes), func(a, b Target) int { return strings.Compare(a.String(), b.String()) }) {
		if s.failing != nil && s.failing.IntN(2) == 0 {
			continue
		}
		s.write(t, d.Writes[t])
	}
	s.reach(d.Wanted)
	return len(d.Writes) > 0
}

// checkOrder says that no edge is told to route packets to nodes as they are before
// the status of the Service has nodes take the address for their own.
func (s *simulation) checkOrder() {
	s.t.Helper()
	byUID := make(map[lb.UID]*v1.Service, len(s.world.Services))
	for _, svc := range s.world.Services {
		byUID[uidOf(svc)] = svc
	}
	for edge, w := range s.wanted {
		info := s.world.Fleet[edge].Info
		for uid, l := range w.told(info).LoadBalancers {
			if !l.Direct() || !slices.Contains(info.Capabilities, lb.CapDirect) {
				continue
			}
			for _, a := range l.Addresses {
				if !tellsVIP(byUID[uid], a) {
					s.t.Errorf("edge %s is to route packets for %s of %s to nodes, and the status says %s", edge, a, l.Name, told(byUID[uid]))
				}
			}
		}
	}
}

// reach tells edges what is wanted of them. One of which it is not known what it
// holds is asked for that first, one that is paused is told nothing, and one that is
// lost keeps what it has.
func (s *simulation) reach(wanted map[string]Wanted) {
	s.t.Helper()
	fleet := map[string]EdgeState{}
	for name, w := range wanted {
		before := s.world.Fleet[name]
		switch st, known := s.held[name]; {
		case s.lost[name]:
			before.Name, before.Connected, before.Problem = name, false, "no route"
			fleet[name] = before
			continue
		case (w.Blind || w.Paused) && known:
			fleet[name] = st
			continue
		}
		fleet[name] = s.serve(name, w)
		if s.lags {
			fleet[name] = s.act(name, fleet[name])
		}
		s.held[name] = fleet[name]
	}
	s.world.Fleet = fleet
}

// act lets an edge do what it acknowledged a round before, and nothing else yet: of
// what it holds by now it says nothing.
func (s *simulation) act(name string, st EdgeState) EdgeState {
	before, began := s.acting[name]
	now := acting{next: st.Status, due: map[lb.UID][]netip.Addr{}}
	for uid, l := range st.Holds.LoadBalancers {
		now.due[uid] = l.Addresses
	}
	if !began {
		before = acting{next: st.Status, due: now.due}
	}
	now.has, now.leaving = before.due, before.leaving
	for uid, addrs := range before.has {
		for _, a := range addrs {
			now.leaving = append(now.leaving, lingering{uid, a, 4})
		}
	}
	st.Status = before.next
	st.Status.LoadBalancers = maps.Clone(before.next.LoadBalancers)
	now.leaving = slices.DeleteFunc(now.leaving, func(l lingering) bool { return l.rounds == 1 || slices.Contains(now.has[l.uid], l.addr) })
	for i, l := range now.leaving {
		now.leaving[i].rounds--
		told := st.Status.LoadBalancers[l.uid]
		told.Leaving = append(slices.Clone(told.Leaving), l.addr)
		st.Status.LoadBalancers[l.uid] = told
	}
	s.acting[name] = now
	return st
}

// having returns the edges that may send or answer packets with an address for a
// Service, or for any if none is named.
func (s *simulation) having(service string, a netip.Addr) []string {
	var edges []string
	for _, name := range sortedNames(s.held) {
		st := s.held[name]
		has := func(uid lb.UID, addrs []netip.Addr) bool {
			return (service == "" || uid == lb.UID("uid-"+service)) && slices.Contains(addrs, a)
		}
		found := false
		for uid, l := range st.Holds.LoadBalancers {
			found = found || has(uid, l.Addresses)
		}
		for uid, l := range st.Status.LoadBalancers {
			found = found || has(uid, l.Leaving)
		}
		for uid, addrs := range s.acting[name].has {
			found = found || has(uid, addrs)
		}
		if found {
			edges = append(edges, name)
		}
	}
	return edges
}

// settle decides until nothing is left to write.
func (s *simulation) settle() {
	s.t.Helper()
	quiet, enough := 0, 2 // what edges do is seen a round later
	if s.lags {
		enough = 7
	}
	for range 6 * enough {
		s.world.Now = s.world.Now.Add(10 * time.Second)
		if s.round() {
			quiet = 0
		} else if quiet++; quiet == enough {
			return
		}
	}
	for target, w := range s.decider.decide(s.world).Writes {
		s.t.Errorf("after %d rounds there is still something to write: %s: %s", 6*enough, target, w.Patch)
	}
}

func (s *simulation) write(t Target, w Write) {
	s.t.Helper()
	for _, e := range w.Events {
		s.events = append(s.events, fmt.Sprintf("%s %s %s: %s", t.Name, e.Type, e.Reason, e.Message))
	}
	s.version++
	switch t.Kind {
	case ServiceKind:
		replace(s.t, s.world.Services, t, w, s.version)
	case PoolKind:
		replace(s.t, s.world.Pools, t, w, s.version)
	case EdgeKind:
		replace(s.t, s.world.Edges, t, w, s.version)
	}
}

// replace applies a write to the object that it is for.
func replace[T object](t *testing.T, objects []T, target Target, w Write, version int) {
	t.Helper()
	for i, o := range objects {
		m := accessor(o)
		if m.GetName() != target.Name || m.GetNamespace() != target.Namespace {
			continue
		}
		after, err := applyPatch(o, kubetesting.PatchActionImpl{PatchType: w.Type, Patch: w.Patch})
		if err != nil {
			t.Fatalf("write to %s: %v: %s", target, err, w.Patch)
		}
		if err := validConditions(after); err != nil {
			t.Errorf("write to %s: %v", target, err)
		}
		accessor(after).SetResourceVersion(fmt.Sprint(version))
		objects[i] = after.(T)
		return
	}
	t.Errorf("write to %s, which is not there", target)
}

// serve is an edge that serves what is right and what it can.
func (s *simulation) serve(name string, w Wanted) EdgeState {
	info, err := lbtest.NewFakeBalancer(name).Info(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	st := EdgeState{
		Name: name, Connected: true, Since: epoch, Info: info, Known: true, Holds: w.Config, Desired: w.Config.Revision,
		Status: lb.Status{
			Cursor: "1", Revision: w.Config.Revision, Durable: true,
			LoadBalancers: map[lb.UID]lb.LoadBalancerStatus{}, Checks: map[lb.CheckID]map[lb.NodeName]lb.MemberStatus{},
		},
	}
	st.Info.Capabilities = slices.Concat([]lb.Capability{
		lb.CapTCP, lb.CapUDP, lb.CapIPv4, lb.CapIPv6, lb.CapRoundRobin,
		lb.CapLeastConnections, lb.CapSourceRanges, lb.CapAffinity, lb.CapMaxConnections,
		lb.CapCheckGRPC, lb.CapCheckNone,
	}, s.able)
	if s.plain[name] {
		st.Info.Capabilities = st.Info.Capabilities[:len(st.Info.Capabilities)-len(s.able)]
	}
	var config lb.Config
	config, st.Withheld, st.Trimmed = compose(w, st.Info, s.held[name].Holds)
	st.Holds = config
	wrong := map[lb.UID][]lb.Problem{}
	for _, c := range config.Validate() {
		wrong[c.LoadBalancer] = append(wrong[c.LoadBalancer], c.Problem)
	}
	for uid, l := range config.LoadBalancers {
		st.Status.LoadBalancers[uid] = lb.LoadBalancerStatus{Applied: len(wrong[uid]) == 0, Problems: wrong[uid]}
		check := l.HealthCheck.ID()
		if st.Status.Checks[check] == nil {
			st.Status.Checks[check] = map[lb.NodeName]lb.MemberStatus{}
		}
		for node := range w.Config.Pools[l.Pool] {
			state, ok := s.sick[node]
			if !ok {
				state = healthcheck.Up
			}
			st.Status.Checks[check][node] = lb.MemberStatus{State: state, Since: epoch}
		}
	}
	return st
}

// describe writes down everything that came of it.
func (s *simulation) describe() []txtar.File {
	s.t.Helper()
	var files []txtar.File
	for _, name := range sortedNames(s.wanted) {
		c := s.wanted[name].Config
		c.Revision = 0
		data, err := json.Marshal(c)
		if err == nil {
			data, err = yaml.JSONToYAML(data)
		}
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, txtar.File{Name: "edge " + name, Data: data})
	}
	for _, svc := range s.world.Services {
		var b bytes.Buffer
		for _, name := range sortedNames(svc.Annotations) {
			if slices.Contains(recordedAnnotations, Annotation(name)) {
				fmt.Fprintf(&b, "%s: %s\n", name, svc.Annotations[name])
			}
		}
		fmt.Fprintf(&b, "finalizers: %v\ningress: %s\n", svc.Finalizers, told(svc))
		for _, c := range svc.Status.Conditions {
			fmt.Fprintf(&b, "%s %s %s\n    %s\n", c.Type, c.Status, c.Reason, c.Message)
		}
		files = append(files, txtar.File{Name: "service " + svc.Name, Data: b.Bytes()})
	}
	if len(s.events) > 0 {
		files = append(files, txtar.File{Name: "events", Data: []byte(strings.Join(s.events, "\n") + "\n")})
	}
	return files
}

// ableEdges reads from a golden file's comment what edges can do besides what the
// fake can: the line "Edges can do: a, b".
func ableEdges(comment []byte) []lb.Capability {
	var able []lb.Capability
	for line := range strings.Lines(string(comment)) {
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), "Edges can do: "); ok {
			for name := range strings.SplitSeq(list, ", ") {
				able = append(able, lb.Capability(name))
			}
		}
	}
	return able
}

// TestGolden lets Services, nodes and endpoints come true and compares what
// edges are told and what Services say. Run it with -update to rewrite the
// files, and read the difference.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/golden/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("found %d golden files: %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			s := newSimulation(t)
			s.able = ableEdges(archive.Comment)
			s.read(archive.Files[0].Data)
			s.settle()
			got := txtar.Format(&txtar.Archive{Comment: archive.Comment, Files: append(archive.Files[:1:1], s.describe()...)})
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("%s is not what comes of it (-want +got):\n%s", path, diff)
			}
		})
	}
}
