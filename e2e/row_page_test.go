package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

// servicesPage is what users read.
const servicesPage = "../docs/reference/services.md"

var (
	pageHeading = regexp.MustCompile(`(?m)^## (.+)$`)
	pageExample = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
)

func readServicesPage(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(servicesPage)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Whatever the page promises is shown, and whatever is shown is promised.
func TestEntriesFollowThePage(t *testing.T) {
	var headings []string
	for _, m := range pageHeading.FindAllStringSubmatch(readServicesPage(t), -1) {
		headings = append(headings, m[1])
	}
	shown := map[string]bool{}
	names := map[string]bool{}
	for _, e := range entries() {
		if !slices.Contains(headings, e.section) {
			t.Errorf("entry %q is for the section %q, which is not on the page", e.name, e.section)
		}
		if e.name == "" || e.run == nil || names[e.section+e.name] {
			t.Errorf("section %q: entry %q has no name, no run or a twin", e.section, e.name)
		}
		shown[e.section], names[e.section+e.name] = true, true
	}
	for _, h := range headings {
		if !shown[h] {
			t.Errorf("nothing shows what the page promises under %q", h)
		}
	}
}

var pageEntries = []entry{{section: "Annotations", name: "the examples of the page work as they stand", run: pageExamples}}

// inLabAddresses turns the addresses of examples into those that the lab's edges
// may use.
var inLabAddresses = strings.NewReplacer("192.0.2.", "172.30.0.", "2001:db8:1::", "fd00:30::")

// pageExamples applies every example of the page and wants it to be served with
// everything that it says.
func pageExamples(t *testing.T, s *stage) {
	var all []*served
	for _, m := range pageExample.FindAllStringSubmatch(readServicesPage(t), -1) {
		for _, text := range strings.Split(inLabAddresses.Replace(m[1]), "---\n") {
			if o := s.apply(t, text); o != nil {
				all = append(all, o)
			}
		}
	}
	if len(all) < 15 {
		t.Fatalf("found %d Services on the page; it is read wrongly", len(all))
	}
	for _, o := range all {
		o.wait(t)
		eventually(t, 15*time.Second, func() error {
			conditions := o.get(t).Status.Conditions
			programmed := meta.FindStatusCondition(conditions, "eclusa.io/Programmed")
			if programmed == nil || programmed.Status != "True" || programmed.Reason != "Programmed" {
				return fmt.Errorf("example %q is not honoured in full: %+v", o.name, conditions)
			}
			return nil
		})
		fromOutside.of(s).answersOrRefuses(t, o)
	}
}

// answersOrRefuses wants each TCP port of the example to do what it is for: its
// source ranges shut the client of the lab out.
func (c caller) answersOrRefuses(t *testing.T, o *served) {
	t.Helper()
	svc := o.get(t)
	for _, p := range svc.Spec.Ports {
		at := o.at(uint16(p.Port))
		switch {
		case p.TargetPort.StrVal != "http" || svc.Annotations["eclusa.io/proxy-protocol"] != "":
		case len(svc.Spec.LoadBalancerSourceRanges) > 0:
			c.shutOut(t, "tcp", at)
		default:
			c.answers(t, "tcp", at)
		}
	}
}

// apply makes what an example describes, a Service or what it needs.
func (s *stage) apply(t *testing.T, text string) *served {
	t.Helper()
	var kind struct {
		Kind     string `json:"kind"`
		Metadata struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal([]byte(text), &kind); err != nil {
		t.Fatalf("%v in example:\n%s", err, text)
	}
	switch kind.Kind {
	case "Service":
		var svc corev1.Service
		if err := yaml.UnmarshalStrict([]byte(text), &svc); err != nil {
			t.Fatalf("%v in example:\n%s", err, text)
		}
		return s.make(t, kind.Metadata.Name, func(o *corev1.Service) {
			name := o.Name
			*o = svc
			o.Namespace, o.Name = s.ns, name
		})
	case "AddressPool":
		var pool v1alpha1.AddressPool
		if err := yaml.UnmarshalStrict([]byte(text), &pool); err != nil {
			t.Fatalf("%v in example:\n%s", err, text)
		}
		spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&pool.Spec)
		if err != nil {
			t.Fatal(err)
		}
		s.pool(t, pool.Name, spec)
	default:
		t.Errorf("an example is of kind %q", kind.Kind)
	}
	return nil
}
