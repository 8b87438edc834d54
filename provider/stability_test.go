package provider

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	v1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// restart lets the manager begin anew: it has forgotten everything, and knows what
// edges hold when it has reached them.
func (s *simulation) restart() {
	s.decider = newDecider()
	s.world.Fleet = map[string]EdgeState{}
}

// holding returns what every edge holds, without revisions.
func (s *simulation) holding() map[string]string {
	s.t.Helper()
	out := map[string]string{}
	for name, st := range s.held {
		if s.wanted[name].Endpoint == "" {
			continue // nobody asks it for anything
		}
		c := st.Holds
		c.Revision = 0
		data, err := json.MarshalIndent(c, "", " ")
		if err != nil {
			s.t.Fatal(err)
		}
		out[name] = string(data)
	}
	return out
}

// happen lets one random thing happen.
func (s *simulation) happen(r *rand.Rand, step int) string {
	pick := func(choices ...string) string { return choices[r.IntN(len(choices))] }
	switch n := r.IntN(12); {
	case n < 4 && len(s.world.Services) > 0:
		i := r.IntN(len(s.world.Services))
		name := s.world.Services[i].Name
		s.happenToService(i, r, pick)
		return "Service " + name
	case n < 5:
		svc := s.randomService(r, 100+step, pick)
		s.world.Services = append(slices.Clone(s.world.Services), svc)
		return "new Service " + svc.Name
	case n < 7:
		s.happenToNode(r, pick)
		return "node"
	case n < 8 && len(s.world.Services) > 0:
		svc := s.world.Services[r.IntN(len(s.world.Services))]
		slice := testSlice(svc.Name, "n0", pick("n1", "n2"))
		slice.Endpoints[0].Conditions.Ready = ptr.To(r.IntN(2) == 0)
		s.slices["default/"+svc.Name] = []*discoveryv1.EndpointSlice{slice}
		return "endpoints of " + svc.Name
	case n < 9:
		s.restart()
		return "restart"
	case n < 10:
		name := fmt.Sprintf("e%d", r.IntN(3))
		s.lost[name] = !s.lost[name]
		return fmt.Sprintf("edge %s lost: %v", name, s.lost[name])
	case n < 11:
		s.failing = r
		return "writes fail"
	default:
		s.failing = nil
		return "writes succeed"
	}
}

// TestConverges lets random things happen in random order, with the manager
// restarting, edges out of reach and writes failing in between. When calm returns,
// edges hold what they would if the manager had just started, each address and port
// has one owner, and nothing is left to write.
func TestConverges(t *testing.T) {
	const seeds = uint64(150)
	for seed := range seeds {
		if !converges(t, seed) {
			return
		}
	}
}

// FuzzConverges is TestConverges for as long as one likes.
func FuzzConverges(f *testing.F) {
	f.Add(uint64(947)) // refused, and held by no edge
	f.Fuzz(func(t *testing.T, seed uint64) { converges(t, seed) })
}

func converges(t *testing.T, seed uint64) bool {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 2))
	s := newSimulation(t)
	s.randomise(r)
	s.lags = seed%4 == 1
	var story []string
	for step := range 5 + r.IntN(30) {
		story = append(story, s.happen(r, step))
		for range r.IntN(3) {
			s.world.Now = s.world.Now.Add(3 * time.Second)
			s.round()
		}
	}
	clear(s.lost)
	s.failing = nil
	s.settle()
	s.world.Now = s.world.Now.Add(2 * messageEvery) // words alone may wait so long
	s.settle()
	s.check()
	before := s.holding()
	services := make([]*v1.Service, len(s.world.Services))
	copy(services, s.world.Services)
	s.restart()
	for range 4 { // edges are reached at once
		s.world.Now = s.world.Now.Add(100 * time.Millisecond)
		s.round()
	}
	s.settle()
	for name, is := range s.holding() {
		if is != before[name] {
			t.Errorf("a fresh start wants something else of edge %s (-converged +fresh):\n%s", name, cmp.Diff(before[name], is))
		}
	}
	for i, svc := range s.world.Services {
		// What a Service that is refused had asked for before is forgotten where no edge
		// holds it, and so is how its nodes were.
		if services[i] != svc && says(svc, ConditionProgrammed) != "False NotServable" {
			t.Errorf("a fresh start writes to Service %s:\nbefore %v %+v\nafter  %v %+v", svc.Name, services[i].Annotations, services[i].Status, svc.Annotations, svc.Status)
		}
	}
	if t.Failed() {
		t.Logf("seed %d: %q", seed, story)
	}
	return !t.Failed()
}
