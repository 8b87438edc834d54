package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// compareAddrs lets cmp look at what has its own idea of equality.
var compareAddrs = cmp.Options{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func TestPatchRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range 200 {
		a := randomConfig(r)
		b := mutate(r, a)
		before, _ := json.Marshal(a)
		patch, err := Diff(a, b)
		if err != nil {
			t.Fatalf("seed %d, round %d: Diff: %v", seed, i, err)
		}
		got, err := ApplyPatch(a, patch)
		if err != nil {
			t.Fatalf("seed %d, round %d: ApplyPatch(%s): %v", seed, i, patch, err)
		}
		checkSame(t, fmt.Sprintf("seed %d, round %d, patch %s", seed, i, patch), got, b)
		if after, _ := json.Marshal(a); string(after) != string(before) {
			t.Fatalf("seed %d, round %d: ApplyPatch changed its base from %s to %s", seed, i, before, after)
		}
		again, err := ApplyPatch(got, patch)
		if err != nil {
			t.Fatalf("seed %d, round %d: second ApplyPatch(%s): %v", seed, i, patch, err)
		}
		checkSame(t, fmt.Sprintf("seed %d, round %d, patch %s twice", seed, i, patch), again, b)
		if patch, err = Diff(got, b); err != nil || string(patch) != "{}" {
			t.Fatalf("seed %d, round %d: Diff of equals: got %s, %v; want {}", seed, i, patch, err)
		}
		checkReference(t, a, b)
	}
}

// checkSame compares two configurations, nil pools being empty.
func checkSame(t *testing.T, what string, got, want lb.Config) {
	t.Helper()
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Fatalf("%s: (-want +got):\n%s", what, diff)
	}
}

// checkReference applies the patch as RFC 7396 puts it, on plain values, and
// compares with the JSON form of what is wanted.
func checkReference(t *testing.T, a, b lb.Config) {
	t.Helper()
	patch, err := Diff(a, b)
	if err != nil {
		t.Fatal(err)
	}
	wantText, _ := encodeConfig(b)
	merged := mergeReference(plainJSON(t, mustEncode(t, a)), plainJSON(t, patch))
	mergedText, _ := json.Marshal(merged)
	got, err := lb.DecodeConfig(mergedText)
	if err != nil {
		t.Fatalf("patch %s of %s: %v", patch, mustEncode(t, a), err)
	}
	want, err := lb.DecodeConfig(wantText)
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, fmt.Sprintf("by the book, patch %s", patch), got, want)
}

func mustEncode(t *testing.T, c lb.Config) []byte {
	t.Helper()
	text, err := encodeConfig(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func plainJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

func mergeReference(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	out, ok := target.(map[string]any)
	if !ok {
		out = map[string]any{}
	}
	out = maps.Clone(out)
	for k, v := range p {
		if v == nil {
			delete(out, k)
		} else {
			out[k] = mergeReference(out[k], v)
		}
	}
	return out
}

func TestDiffIsSmall(t *testing.T) {
	members := func(names ...lb.NodeName) map[lb.NodeName]lb.Member {
		m := map[lb.NodeName]lb.Member{}
		for _, n := range names {
			m[n] = lb.Member{}
		}
		return m
	}
	base := func() lb.Config { return bigConfig(2, 3) }
	const uid = "4f1c2d3e-0000-4000-8000-000000000001"
	change := func(f func(*lb.LoadBalancer)) lb.Config {
		c := base()
		l := c.LoadBalancers[uid]
		f(&l)
		c.LoadBalancers[uid] = l
		return c
	}
	with := func(m map[lb.NodeName]lb.Member) lb.Config {
		return change(func(l *lb.LoadBalancer) { l.Members = m })
	}
	entry := func(s string) string { return `{"loadBalancers":{"` + uid + `":` + s + `}}` }
	drained := base()
	n := drained.Nodes["node-001.example.com"]
	n.Draining = true
	drained.Nodes["node-001.example.com"] = n
	gone := base()
	delete(gone.Nodes, "node-002.example.com")
	delete(gone.Pools["all"], "node-002.example.com")
	delete(gone.LoadBalancers, uid)
	for _, c := range []struct {
		name     string
		from, to lb.Config
		want     string
	}{
		{"nothing", base(), base(), `{}`},
		{"another zone of the clock", base(), change(func(l *lb.LoadBalancer) { l.ClaimTime = l.ClaimTime.In(time.FixedZone("x", 3600)) }), `{}`},
		{"revision", lb.Config{Revision: 7}, lb.Config{Revision: 8}, `{"revision":8}`},
		{"node event", base(), drained, `{"nodes":{"node-001.example.com":{"draining":true}}}`},
		{"node ready again", drained, base(), `{"nodes":{"node-001.example.com":{"draining":null}}}`},
		{"removals", base(), gone, `{"nodes":{"node-002.example.com":null},"pools":{"all":{"node-002.example.com":null}},"loadBalancers":{"` + uid + `":null}}`},
		{"from all to nobody", base(), with(members()), entry(`{"members":{}}`)},
		{"from nobody to all", with(members()), base(), entry(`{"members":null}`)},
		{"from all to one", base(), with(members("a")), entry(`{"members":{"a":{}}}`)},
		{"from one to another", with(members("a")), with(members("b")), entry(`{"members":{"b":{},"a":null}}`)},
		{"from one to nobody", with(members("a")), with(members()), entry(`{"members":{"a":null}}`)},
		{"affinity", base(), change(func(l *lb.LoadBalancer) { l.Affinity = &lb.Affinity{} }), entry(`{"affinity":{"timeout":"0s"}}`)},
		{"a nil pool", lb.Config{}, lb.Config{Pools: map[lb.PoolName]lb.Pool{"p": nil}}, `{"pools":{"p":{}}}`},
		{"list", base(), change(func(l *lb.LoadBalancer) { l.Listeners = []lb.Listener{{Protocol: lb.UDP, Port: 53, TargetPort: 30053}} }),
			entry(`{"listeners":[{"protocol":"udp","port":53,"targetPort":30053}]}`)},
		{"one member of the check", base(), change(func(l *lb.LoadBalancer) { l.HealthCheck.Port = 9 }), entry(`{"healthCheck":{"port":9}}`)},
	} {
		got, err := Diff(c.from, c.to)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}

func TestNodeEventOfLargeClusterIsSmall(t *testing.T) {
	from, to := nodeEvent(bigConfig(5000, 500))
	patch, err := Diff(from, to)
	if err != nil {
		t.Fatal(err)
	}
	if len(patch) >= 1000 {
		t.Errorf("patch of one node event: got %d bytes; want less than 1000: %s", len(patch), patch)
	}
	got, err := ApplyPatch(from, patch)
	if err != nil {
		t.Fatal(err)
	}
	if reflect.ValueOf(got.LoadBalancers).Pointer() != reflect.ValueOf(from.LoadBalancers).Pointer() {
		t.Error("load balancers were copied by a patch that does not touch them")
	}
	checkSame(t, "node event", got, to)
}

// nodeEvent returns c, and c with one node that drains.
func nodeEvent(c lb.Config) (from, to lb.Config) {
	to = c
	to.Revision++
	to.Nodes = maps.Clone(c.Nodes)
	n := to.Nodes["node-123.example.com"]
	n.Draining = true
	to.Nodes["node-123.example.com"] = n
	return c, to
}

func TestApplyPatchRefuses(t *testing.T) {
	base := bigConfig(2, 2)
	base.LoadBalancers["u1"] = base.LoadBalancers["4f1c2d3e-0000-4000-8000-000000000001"]
	deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
	for _, c := range []struct{ patch, want string }{
		{`{"loadBalancers":{"u1":{"foo":1}}}`, `unknown field "foo"`},
		{`{"loadBalancers":{"u1":{"listeners":[{"protocol":"tcp","port":1,"targetPort":2,"bar":true}]}}}`, `loadBalancers["u1"].listeners[0] (`},
		{`{"nodes":{"n":{"adresses":["192.0.2.1"]}}}`, `nodes["n"] (`},
		{`{"pools":{"all":{"n":{"x":1}}}}`, `pools["all"]`},
		{`{"nodes":{"n":7}}`, `nodes["n"]`},
		{`{"nodes":7}`, `nodes`},
		{`{"revision":-1}`, `revision`},
		{`{"revision":"1"}`, `revision`},
		{`{"Revision":1}`, `Revision`},
		{`{"extra":{}}`, `extra`},
		{`{"revision":1,"revision":2}`, `"revision" is there twice`},
		{`{"loadBalancers":{"u1":{"name":"a","name":"b"}}}`, `loadBalancers["u1"]: key "name" is there twice`},
		{`{"revision":1`, `ends after`},
		{`{"revision":1}{}`, `follows`},
		{`[]`, `object`},
		{``, `ends`},
		{"{\"nodes\":{\"\xff\":null}}", `UTF-8`},
		{`{"loadBalancers":{"u1":` + deep + `}}`, `within one another`},
	} {
		got, err := ApplyPatch(base, []byte(c.patch))
		if !errors.Is(err, lb.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.80s: got %v, %v; want an ErrInvalid with %q", c.patch, got, err, c.want)
		}
	}
}

func TestApplyPatchIsBounded(t *testing.T) {
	var many strings.Builder
	for i := range maxMembers + 1 {
		fmt.Fprintf(&many, `,"%d":null`, i)
	}
	_, err := ApplyPatch(lb.Config{}, []byte(`{"nodes":{`+many.String()[1:]+`}}`))
	if !errors.Is(err, lb.ErrExhausted) {
		t.Errorf("got %v; want ErrExhausted", err)
	}
}

func TestApplyPatchDeletes(t *testing.T) {
	base := bigConfig(2, 2)
	got, err := ApplyPatch(base, []byte(`{"revision":null,"nodes":null,"pools":{"all":null,"other":null},"loadBalancers":{},"unknown":null}`))
	if err != nil {
		t.Fatal(err)
	}
	checkSame(t, "deletions", got, lb.Config{LoadBalancers: base.LoadBalancers})
}

// TestEqualSeesEveryField changes each field in turn, so that none can be
// forgotten by the functions that compare entries.
func TestEqualSeesEveryField(t *testing.T) {
	full := lb.LoadBalancer{Members: map[lb.NodeName]lb.Member{}, Affinity: &lb.Affinity{}}
	checkFields(t, full, equalLoadBalancer)
	checkFields(t, lb.LoadBalancer{}, equalLoadBalancer)
	checkFields(t, lb.Node{}, equalNode)
	for _, c := range []struct {
		a, b lb.LoadBalancer
	}{
		{lb.LoadBalancer{}, lb.LoadBalancer{Members: map[lb.NodeName]lb.Member{}}},
		{lb.LoadBalancer{}, lb.LoadBalancer{Affinity: &lb.Affinity{}}},
		{full, lb.LoadBalancer{Members: full.Members, Affinity: &lb.Affinity{Timeout: 1}}},
	} {
		if equalLoadBalancer(c.a, c.b) || equalLoadBalancer(c.b, c.a) || !equalLoadBalancer(c.b, c.b) {
			t.Errorf("%+v and %+v: compared wrongly", c.a, c.b)
		}
	}
}

// checkFields fails for every field of V, embedded ones included, whose change
// equal does not see.
func checkFields[V any](t *testing.T, v V, equal func(a, b V) bool) {
	t.Helper()
	if !equal(v, v) {
		t.Errorf("%+v is not equal to itself", v)
	}
	var visit func(path []int, typ reflect.Type)
	visit = func(path []int, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := append(append([]int{}, path...), i)
			if f.Type == reflect.TypeFor[lb.HealthCheck]() || f.Type == reflect.TypeFor[healthcheck.Spec]() {
				visit(at, f.Type)
				continue
			}
			changed := v
			field := reflect.ValueOf(&changed).Elem().FieldByIndex(at)
			field.Set(different(t, field))
			if equal(v, changed) || equal(changed, v) {
				t.Errorf("%T: a change of field %s is not seen", v, f.Name)
			}
		}
	}
	visit(nil, reflect.TypeFor[V]())
}

// different returns another value of v's type.
func different(t *testing.T, v reflect.Value) reflect.Value {
	t.Helper()
	out := reflect.New(v.Type()).Elem()
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		out.Set(reflect.ValueOf(time.Unix(1, 0)))
	case v.Kind() == reflect.String:
		out.SetString(v.String() + "x")
	case v.CanInt():
		out.SetInt(v.Int() + 1)
	case v.CanUint():
		out.SetUint(v.Uint() + 1)
	case v.Kind() == reflect.Bool:
		out.SetBool(!v.Bool())
	case v.Kind() == reflect.Slice:
		out.Set(reflect.MakeSlice(v.Type(), v.Len()+1, v.Len()+1))
	case v.Kind() == reflect.Map:
		out.Set(reflect.MakeMap(v.Type()))
		out.SetMapIndex(reflect.Zero(v.Type().Key()), reflect.Zero(v.Type().Elem()))
	case v.Kind() == reflect.Pointer && v.IsNil():
		out.Set(reflect.New(v.Type().Elem()))
	case v.Kind() == reflect.Pointer:
	default:
		t.Fatalf("no other value of type %s is known", v.Type())
	}
	return out
}

func BenchmarkDiffNodeEvent(b *testing.B) {
	from, to := nodeEvent(bigConfig(5000, 500))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Diff(from, to); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkApplyPatchNodeEvent(b *testing.B) {
	from, to := nodeEvent(bigConfig(5000, 500))
	patch, err := Diff(from, to)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ApplyPatch(from, patch); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDiffAllNew(b *testing.B) {
	to := bigConfig(5000, 500)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Diff(lb.Config{}, to); err != nil {
			b.Fatal(err)
		}
	}
}
