package e2e

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

// An entry shows one thing that a Service can say, end to end, from where it
// counts.
type entry struct {
	// section is the heading of docs/reference/services.md that promises it.
	section string
	// name says what is shown, and from where if that makes a difference.
	name string
	// alone is for entries that change nodes or measure time: no other runs
	// meanwhile.
	alone bool
	// told is for entries about what the manager is told for all Services: it runs
	// with toldSettings then, and no other entry meanwhile.
	told bool
	// away, unless nil, is what happens before, while no manager runs.
	away func(*testing.T, *stage)
	// run makes the Services that it needs and leaves nothing else behind.
	run func(*testing.T, *stage)
}

// entries is the whole table.
func entries() []entry {
	var all []entry
	for _, part := range [][]entry{
		endpointEntries, portEntries, sourceEntries, affinityEntries, localEntries, proxyEntries, familyEntries,
		addressEntries, sharingEntries, kindEntries, checkEntries, nodeEntries, nodeAddressEntries, algorithmEntries, limitEntries,
		classEntries, refusalEntries, pageEntries,
	} {
		all = append(all, part...)
	}
	return all
}

// A stage is what the entries share: pods that answer, one on each node, and
// somebody who connects from outside the cluster and from inside.
type stage struct {
	*cluster
	ns     string // the namespace of the pods, labelled app=web
	title  string // of the entry, fit for names of objects
	plugin plugin
	inside *lab.Host // the network of one of these pods
}

// atOnce is how many entries run at the same time. They mostly wait.
const atOnce = 6

// Everything that a Service can say, as docs/reference/services.md promises it.
func TestEverythingAServiceCanSay(t *testing.T) {
	c := inLab(t)
	shared := &stage{cluster: c, ns: c.namespace(t), plugin: plugin{c: c, program: buildPlugin(t), kubeconfig: c.Kubeconfig()}}
	c.deploy(t, shared.ns, "web", int32(len(c.Nodes)))
	shared.inside = c.podOn(t, shared.ns, "web", c.Nodes[0])
	c.guests(t)
	all := entries()
	t.Run("together", func(t *testing.T) {
		// Not by t.Parallel, which counts other tests that wait for a lab too.
		var g errgroup.Group
		g.SetLimit(atOnce)
		for _, e := range all {
			if !e.alone && !e.told {
				g.Go(func() error {
					t.Run(e.section+"/"+e.name, func(t *testing.T) { e.run(t, shared.forEntry(e)) })
					return nil
				})
			}
		}
		_ = g.Wait() // the tests tell
	})
	for _, e := range all {
		if e.alone {
			t.Run("alone/"+e.section+"/"+e.name, func(t *testing.T) { e.run(t, shared.forEntry(e)) })
		}
	}
	t.Run("told", func(t *testing.T) { shared.runTold(t, all) })
}

// toldSettings are values of the chart other than the default.
const toldSettings = "drainCordonedNodes=true,nodeAddressTypes={ExternalIP,InternalIP}"

// runTold runs the entries for which the manager has other settings.
func (s *stage) runTold(t *testing.T, all []entry) {
	helm := s.helms(t)["helm4"]
	// All managers end first, since nobody needs them meanwhile: that is quicker than
	// one after the other.
	upgrade := func(ctx context.Context, away func(), more ...string) {
		if err := s.Manager.Stop(ctx); err != nil {
			t.Error(err)
		}
		away()
		args := append([]string{"upgrade", lab.Release, "../charts/eclusa", "--values", s.Values()}, more...)
		if err := s.helm(ctx, helm, args...); err != nil {
			t.Error(err)
		}
		s.ensureCCM(t)
	}
	t.Cleanup(func() { upgrade(cleanup(t), func() {}) })
	upgrade(t.Context(), func() {
		for _, e := range all {
			if e.away != nil {
				e.away(t, s.forEntry(e))
			}
		}
	}, "--set", toldSettings)
	for _, e := range all {
		if e.told {
			t.Run(e.section+"/"+e.name, func(t *testing.T) { e.run(t, s.forEntry(e)) })
		}
	}
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

func (s *stage) forEntry(e entry) *stage {
	own := *s
	own.title = strings.Trim(notInNames.ReplaceAllString(strings.ToLower(e.name), "-"), "-")
	if len(own.title) > 30 {
		own.title = own.title[:30]
	}
	// What is cut off may be all that tells two apart.
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(e.section + e.name))
	own.title = fmt.Sprintf("%s-%x", strings.Trim(own.title, "-"), sum.Sum32()&0xffff)
	return &own
}

// A served is one Service of an entry.
type served struct {
	*stage
	ns, name string
	addrs    []netip.Addr
}

// make creates a Service in front of the shared pods, with HTTP on port 80, after
// the changes. It is deleted when the entry ends.
func (s *stage) make(t *testing.T, name string, changes ...func(*corev1.Service)) *served {
	t.Helper()
	return s.makeIn(t, s.ns, name, changes...)
}

func (s *stage) makeIn(t *testing.T, ns, name string, changes ...func(*corev1.Service)) *served {
	t.Helper()
	o := &served{stage: s, ns: ns, name: strings.Trim(s.title+"-"+name, "-")}
	svc := lab.Service(ns, o.name)
	svc.Spec.Selector = map[string]string{"app": "web"}
	for _, change := range changes {
		change(svc)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s", s.kubectl(cleanup(t), "describe", "service", "-n", ns, o.name))
		}
		o.remove(t)
	})
	s.create(t, svc)
	return o
}

// remove deletes the Service and waits until it is gone.
func (o *served) remove(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	if ctx.Err() != nil { // in a clean-up
		ctx = cleanup(t)
	}
	err := poll(ctx, 20*time.Second, func() error {
		err := o.kube.CoreV1().Services(o.ns).Delete(ctx, o.name, metav1.DeleteOptions{})
		if isNotFound(err) {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("service %q is still there", o.ns+"/"+o.name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// serve makes the Service and waits until it has its addresses.
func (s *stage) serve(t *testing.T, name string, changes ...func(*corev1.Service)) *served {
	t.Helper()
	o := s.make(t, name, changes...)
	o.wait(t)
	return o
}

// wait waits until the Service has addresses, and notes them.
func (o *served) wait(t *testing.T) {
	t.Helper()
	eventually(t, 20*time.Second, func() (err error) {
		svc := o.get(t)
		if o.addrs, err = lab.Ingress(svc); err == nil && len(o.addrs) == 0 {
			err = fmt.Errorf("service %q has no address yet, conditions %+v", o.name, svc.Status.Conditions)
		}
		return err
	})
}

// at is the port on the first address.
func (o *served) at(port uint16) netip.AddrPort { return netip.AddrPortFrom(o.addrs[0], port) }

// of is the port on the address of the family.
func (o *served) of(t *testing.T, six bool, port uint16) netip.AddrPort {
	t.Helper()
	for _, a := range o.addrs {
		if a.Is6() == six {
			return netip.AddrPortFrom(a, port)
		}
	}
	t.Fatalf("service %q has addresses %v, want one of each family", o.name, o.addrs)
	return netip.AddrPort{}
}

func (o *served) get(t *testing.T) *corev1.Service {
	t.Helper()
	return o.service(t, o.ns, o.name)
}

func (o *served) change(t *testing.T, f func(*corev1.Service)) {
	t.Helper()
	o.update(t, o.ns, o.name, f)
}

// is waits until the Condition has the status and every word in its message, and
// returns it.
func (o *served) is(t *testing.T, kind string, status metav1.ConditionStatus, words ...string) metav1.Condition {
	t.Helper()
	var cond metav1.Condition
	eventually(t, 20*time.Second, func() error {
		cond = o.condition(t, o.ns, o.name, kind, status)
		if lacking := missing(cond.Message, words); len(lacking) > 0 {
			return fmt.Errorf("condition %s says %q, want it to name %q", kind, cond.Message, lacking)
		}
		return nil
	})
	return cond
}

// warns waits for a warning Event with every word.
func (o *served) warns(t *testing.T, words ...string) {
	t.Helper()
	eventually(t, 15*time.Second, func() error { return o.warned(t, o.ns, o.name, words) })
}

// annotated adds annotations, names and values in turn; names without a slash are
// eclusa's own.
func annotated(pairs ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		if s.Annotations == nil {
			s.Annotations = map[string]string{}
		}
		for i := 0; i < len(pairs); i += 2 {
			name := pairs[i]
			if !strings.Contains(name, "/") {
				name = "eclusa.io/" + name
			}
			s.Annotations[name] = pairs[i+1]
		}
	}
}

// ports replaces the ports of the Service by those written as NAME PORT/PROTOCOL
// TARGET, such as "dns 53/UDP udp-echo".
func ports(specs ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Ports = nil
		for _, text := range specs {
			s.Spec.Ports = append(s.Spec.Ports, port(text))
		}
	}
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func dualStack(s *corev1.Service) {
	s.Spec.IPFamilyPolicy = ptr(corev1.IPFamilyPolicyRequireDualStack)
}
