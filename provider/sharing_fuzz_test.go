package provider

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/lb"
)

// seat is a port of a shared address.
type seat struct {
	addr netip.Addr
	port uint16
}

// sharingGame lets Services that share an address want ports, give them up, be
// refused, come and go, while edges are lost and found and the manager starts anew. It
// knows who was served on which port, and what each wants.
type sharingGame struct {
	*simulation
	r      *rand.Rand
	owners map[seat]string            // who was served there, by UID
	wants  map[string]map[uint16]bool // by UID, as last accepted
	seen   map[string]*v1.Service     // by UID, as the manager saw it last
	made   int
	story  []string
	edges  []string
}

func newSharingGame(t *testing.T, seed uint64) *sharingGame {
	g := &sharingGame{
		r: rand.New(rand.NewPCG(seed, 3)), owners: map[seat]string{}, wants: map[string]map[uint16]bool{}, seen: map[string]*v1.Service{},
		edges: []string{"e1", "e2", "e3"}[:1+seed%3],
	}
	by, addresses := "Always", "192.0.2.7"
	if seed%2 == 1 {
		by, addresses = "ByKey", "192.0.2.6-192.0.2.7"
	}
	g.simulation = sharing(t, by, addresses, g.edges)
	return g
}

func (g *sharingGame) someService() *v1.Service {
	if len(g.world.Services) == 0 {
		return nil
	}
	return g.world.Services[g.r.IntN(len(g.world.Services))]
}

func (g *sharingGame) somePorts() []int32 {
	ports := []int32{80, 443, 22, 8080}
	g.r.Shuffle(len(ports), func(i, j int) { ports[i], ports[j] = ports[j], ports[i] })
	return ports[:1+g.r.IntN(3)]
}

// happen lets one thing happen.
func (g *sharingGame) happen() string {
	svc := g.someService()
	switch n := g.r.IntN(10); {
	case n < 2 || svc == nil:
		g.made++
		svc := onPorts(fmt.Sprintf("s%d", g.made), g.somePorts()...)
		annotated(AnnotationSharingKey, "k")(svc)
		g.join(svc, g.r.IntN(900))
		return fmt.Sprintf("%s comes with %v", svc.Name, portNumbers(svc))
	case n < 5:
		g.edit(svc.Name, toPorts(g.somePorts()...))
		return fmt.Sprintf("%s wants %v", svc.Name, portNumbers(g.service(svc.Name)))
	case n < 6:
		if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
			g.edit(svc.Name, func(svc *v1.Service) { svc.Spec.LoadBalancerSourceRanges = nil })
			return svc.Name + " is right again"
		}
		g.edit(svc.Name, unservable)
		return svc.Name + " cannot be served"
	case n < 7 && g.r.IntN(2) == 0:
		g.remove(svc.Name)
		return svc.Name + " goes"
	case n < 9:
		edge := g.edges[g.r.IntN(len(g.edges))]
		g.lost[edge] = !g.lost[edge]
		return fmt.Sprintf("%s lost: %v", edge, g.lost[edge])
	default:
		g.restart()
		return "restart"
	}
}

// observe looks at what edges were told in the last round: nobody is served on a port
// that another was served on and still wants.
func (g *sharingGame) observe() {
	g.t.Helper()
	there := map[string]bool{}
	for _, svc := range g.world.Services {
		uid := string(svc.UID)
		there[uid] = true
		if len(svc.Spec.LoadBalancerSourceRanges) == 0 {
			g.wants[uid] = map[uint16]bool{}
			for _, p := range svc.Spec.Ports {
				g.wants[uid][uint16(p.Port)] = true
			}
		}
	}
	for at, uid := range g.owners {
		if !there[uid] || !g.wants[uid][at.port] {
			delete(g.owners, at)
		}
	}
	for _, edge := range g.edges {
		if g.lost[edge] || g.wanted[edge].Blind {
			continue
		}
		for _, uid := range sortedNames(g.wanted[edge].Config.LoadBalancers) {
			g.take(edge, string(uid), g.wanted[edge].Config.LoadBalancers[uid])
		}
	}
}

func (g *sharingGame) take(edge, uid string, l lb.LoadBalancer) {
	for _, a := range l.Addresses {
		for _, li := range l.Listeners {
			at := seat{a, li.Port}
			if owner := g.owners[at]; owner != "" && owner != uid {
				g.t.Errorf("edge %s is to serve port %d of %s for %s; %s was served there and still wants it", edge, at.port, a, uid, owner)
			}
			g.owners[at] = uid
		}
	}
}

// end lets calm return: everybody is served on what nobody else has.
func (g *sharingGame) end() {
	clear(g.lost)
	g.pass(3, time.Second)
	g.observe()
	g.settle()
	g.pass(1, 2*messageEvery) // words alone may wait so long
	g.settle()
	g.observe()
	g.check()
	for _, svc := range g.world.Services {
		if len(svc.Spec.LoadBalancerSourceRanges) > 0 {
			continue // its status stays as it was
		}
		for _, in := range svc.Status.LoadBalancer.Ingress {
			for _, p := range in.Ports {
				at := seat{netip.MustParseAddr(in.IP), uint16(p.Port)}
				if p.Error != nil && (g.owners[at] == "" || g.owners[at] == string(svc.UID)) {
					g.t.Errorf("%s: port %d of %s is not served (%s), and nobody has it", svc.Name, p.Port, in.IP, *p.Error)
				}
			}
		}
	}
}

func portNumbers(svc *v1.Service) []int32 {
	var out []int32
	for _, p := range svc.Spec.Ports {
		out = append(out, p.Port)
	}
	slices.Sort(out)
	return out
}

func playSharing(t *testing.T, seed uint64) bool {
	t.Helper()
	g := newSharingGame(t, seed)
	for range 5 + g.r.IntN(40) {
		g.story = append(g.story, g.happen())
		for range 1 + g.r.IntN(3) {
			g.pass(1, []time.Duration{time.Second, time.Second, 30 * time.Second}[g.r.IntN(3)])
			g.observe()
			if t.Failed() {
				break
			}
		}
		if t.Failed() {
			break
		}
	}
	if !t.Failed() {
		g.end()
	}
	if t.Failed() {
		t.Logf("seed %d:\n%s", seed, strings.Join(g.story, "\n"))
	}
	return !t.Failed()
}

// TestSharedPortsStay lets random things happen to Services that share an address. A
// port that one of them is served on never goes to another while it still wants it.
func TestSharedPortsStay(t *testing.T) {
	for seed := range uint64(150) {
		if !playSharing(t, seed) {
			return
		}
	}
}

// FuzzSharedPorts is TestSharedPortsStay for as long as one likes.
func FuzzSharedPorts(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { playSharing(t, seed) })
}
