package page

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp/kb"
	"go.uber.org/zap/zaptest"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// What people see, in a real browser.
func TestBrowser(t *testing.T) {
	b := newBrowser(t)
	t.Run("live", func(t *testing.T) { testLive(t, b) })
	t.Run("hostile names", func(t *testing.T) { testHostile(t, b) })
	t.Run("keyboard", func(t *testing.T) { testKeyboard(t, b) })
	t.Run("five thousand", func(t *testing.T) { testThousands(t, b) })
	t.Run("looks", func(t *testing.T) { testLooks(t, b) })
	t.Run("without scripts", func(t *testing.T) { testPlain(t, b) })
	t.Run("login", func(t *testing.T) { testLogin(t, b) })
}

// handler is the page's handler alone.
func (p *Page) handler() http.Handler { return p.Handler(http.NotFoundHandler()) }

// liveEdge is a real edge with a real checker, whose probes of a node fail when
// sick is set.
func liveEdge(t *testing.T) (p *Page, sick *atomic.Bool) {
	t.Helper()
	sick = new(atomic.Bool)
	probe := healthcheck.ProberFunc(func(_ context.Context, addr netip.AddrPort, _ healthcheck.Spec) error {
		if sick.Load() && addr.Addr() == netip.MustParseAddr("10.0.0.2") {
			return &healthcheck.Failure{Reason: healthcheck.Refused, Text: "connection refused"}
		}
		return nil
	})
	checker := healthcheck.New(healthcheck.Options{Probers: map[healthcheck.Protocol]healthcheck.Prober{healthcheck.HTTP: probe, healthcheck.TCP: probe}})
	events := NewEvents()
	e, err := edge.New(edge.Options{
		Name: "edge-1", Version: "v0.3.0", StateDir: t.TempDir(), Engine: lbtest.NewFakeEngine(), Checker: checker,
		Log: events.Watch(zaptest.NewLogger(t)),
		Clusters: map[lb.Cluster]lb.Policy{"prod": {
			AddressRanges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, NodeRanges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
			MaxLoadBalancers: 10, MaxListeners: 10, MaxNodes: 10,
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err = New(Options{Source: e, Events: events, Access: Access{Open: true}, Log: zaptest.NewLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, run := range []func(context.Context) error{checker.Run, e.Run, p.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
	c := e.Cluster("prod")
	epoch, err := c.Claim(t.Context(), lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "ccm"})
	if err != nil {
		t.Fatal(err)
	}
	config := lb.Config{Revision: 7, Nodes: map[lb.NodeName]lb.Node{}, Pools: map[lb.PoolName]lb.Pool{"all": {}}, LoadBalancers: map[lb.UID]lb.LoadBalancer{}}
	for i := range 2 {
		node := lb.NodeName(fmt.Sprint("n", i+1))
		config.Nodes[node] = lb.Node{Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}}
		config.Pools["all"][node] = lb.Member{}
	}
	config.LoadBalancers["u1"] = lb.LoadBalancer{
		Name: "shop/web", ClaimTime: time.Unix(1, 0), Pool: "all", FailOpen: true, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		Listeners:   []lb.Listener{{Protocol: lb.TCP, Port: 80, TargetPort: 30080}},
		HealthCheck: lb.HealthCheck{Spec: healthcheck.Spec{Protocol: healthcheck.HTTP}, Port: 10256},
	}
	if _, err := c.Set(t.Context(), lb.Write{Epoch: epoch, Config: config}); err != nil {
		t.Fatal(err)
	}
	return p, sick
}

// A node that goes down is seen without a reload, with its reason, and comes
// back; so do the events that tell of it.
func testLive(t *testing.T, b *browser) {
	page, sick := liveEdge(t)
	p := b.open(t, page.handler())
	p.visit("/")
	p.wait(`document.querySelector("#summary").innerText === "Everything is served"`)
	p.wait(`document.querySelector("#lbs").innerText.includes("2/2 up")`)
	eval[int](p, `window.loads = 1`)
	sick.Store(true)
	start := time.Now()
	p.wait(`document.querySelector("#summary").innerText === "1 problem"`)
	t.Logf("seen %s after the node failed", time.Since(start).Round(100*time.Millisecond))
	p.wait(`document.querySelector("#problems").innerText.includes("connection refused")`)
	p.wait(`document.querySelector("#lbs tr.degraded").innerText.includes("1 of 2 members down")`)
	p.wait(`document.querySelector("#nodes tr.failing").innerText.includes("connection refused")`)
	p.wait(`document.querySelector("#events").innerText.includes("node is down and takes no new connections")`)
	p.wait(`document.title.startsWith("(1) ")`)
	sick.Store(false)
	p.wait(`document.querySelector("#summary").innerText === "Everything is served" && !document.querySelector("#problems")`)
	if eval[int](p, `window.loads`) != 1 {
		t.Error("the page was loaded again")
	}
	if rev := eval[string](p, `document.querySelector("#clusters").innerText`); !strings.Contains(rev, "7") || !strings.Contains(rev, "on disk") {
		t.Errorf("clusters: got %q; want revision 7 on disk", rev)
	}
}

// Names are text, whatever they are made of.
func testHostile(t *testing.T, b *browser) {
	s := hostile()
	page := newPage(t, s, Access{Open: true})
	page.remember(s)
	page.events.add(Event{noon, "warn", hostileName, []Field{{hostileName, hostileName}}}, true)
	p := b.open(t, page.handler())
	for _, path := range []string{"/", detailPath(hostileName), "/?q=" + queryEscape(hostileName)} {
		p.visit(path)
		p.wait(`document.querySelector("#live").dataset.state === "on"`)
		if eval[bool](p, `"pwned" in window || document.querySelectorAll("main script, main img, main iframe").length > 0`) {
			t.Errorf("%s: a name has become more than text", path)
		}
		if !eval[bool](p, `document.body.innerText.includes(`+quote(hostileName)+`)`) {
			t.Errorf("%s: the name is not shown as it is", path)
		}
	}
	p.visit("/")
	p.size(390, 844, true)
	p.narrow("/ with long names")
}

// Everything can be done with a keyboard, and live updates do not take the focus
// away.
func testKeyboard(t *testing.T, b *browser) {
	s := demo()
	page := newPage(t, s, Access{Open: true})
	page.remember(s)
	var seconds atomic.Int64
	page.now = func() time.Time { return noon.Add(time.Duration(seconds.Load()) * time.Second) }
	p := b.open(t, page.handler())
	p.visit("/")
	p.keys(kb.Tab)
	if got := eval[string](p, `document.activeElement.innerText`); got != "Skip to content" {
		t.Errorf("the first stop of Tab: got %q; want a way past the header", got)
	}
	p.keys(kb.Enter)
	if got := eval[string](p, `document.activeElement.id`); got != "main" {
		t.Errorf("skipping the header: the focus is on %q; want main", got)
	}
	p.press("/")
	p.keys("grafana")
	p.wait(`document.querySelectorAll("#lbs tbody tr").length === 1`)
	if got := eval[string](p, `location.search`); got != "?q=grafana" {
		t.Errorf("got %q; want the search in the address, so that it can be kept", got)
	}
	seconds.Add(2) // what is shown is older than a second, and other
	p.wait(`document.querySelector("#live").dataset.state === "on"`)
	if got := eval[string](p, `document.activeElement.id + "=" + document.activeElement.value`); got != "q=grafana" {
		t.Errorf("after an update: got %q; want the focus where it was", got)
	}
	p.keys(kb.Escape)
	p.wait(`document.querySelectorAll("#lbs tbody tr").length === 8`)
	for range 2 { // past All, to Problems
		p.keys(kb.Tab)
	}
	p.keys(kb.Enter)
	p.wait(`document.querySelectorAll("#lbs tbody tr").length === 5`)
	p.keys(kb.Tab)
	p.keys(kb.Enter)
	p.wait(`location.pathname === "/load-balancer" && document.querySelector("#members")`)
	if got := eval[string](p, `document.querySelector("h1").innerText`); got != "dns/resolver prod" {
		t.Errorf("got %q; want the first load balancer", got)
	}
}

// Thousands of load balancers stay usable.
func testThousands(t *testing.T, b *browser) {
	page := newPage(t, thousands(5000), Access{Open: true})
	p := b.open(t, page.handler())
	start := time.Now()
	p.visit("/")
	t.Logf("loaded in %s, with %d elements", time.Since(start).Round(time.Millisecond), eval[int](p, `document.querySelectorAll("*").length`))
	if got := eval[int](p, `document.querySelectorAll("#lbs tbody tr").length`); got != rowsPerPage {
		t.Errorf("got %d rows; want %d", got, rowsPerPage)
	}
	eval[int](p, `window.loads = 1`)
	p.do(click(`#lbs .pager a[rel=next]`))
	p.wait(`document.querySelector("#lbs .pager").innerText.includes("Page 2 of 100") && location.search === "?page=2"`)
	p.do(focus("#q"))
	p.keys("svc-4321")
	p.wait(`document.querySelectorAll("#lbs tbody tr").length === 1 && document.querySelector("#lbs").innerText.includes("team-1/svc-4321")`)
	eval[int](p, `history.back(), 1`)
	p.wait(`document.querySelector("#lbs .pager").innerText.includes("Page 1 of 100") && document.querySelector("#q").value === ""`)
	if eval[int](p, `window.loads`) != 1 {
		t.Error("the page was loaded again")
	}
}

// The page fits a phone and can be read, light and dark.
func testLooks(t *testing.T, b *browser) {
	s := demo()
	page := newPage(t, s, Access{Open: true})
	page.remember(s)
	page.happened()
	p := b.open(t, page.handler())
	for name, path := range map[string]string{"overview": "/", "detail": "/load-balancer?cluster=prod&uid=prod-1"} {
		for _, scheme := range []string{"light", "dark"} {
			for _, device := range []string{"desk", "phone"} {
				what := name + "-" + scheme + "-" + device
				if p.size(1280, 900, false); device == "phone" {
					p.size(390, 844, true)
				}
				p.prefer(scheme)
				p.visit(path)
				p.narrow(what)
				p.readable(what)
				p.shoot(what)
			}
		}
	}
	p.size(1280, 900, false)
	p.prefer("light")
	p.updatePicture("/")
}

// Searching and following links needs no script, and the page says how old it is.
func testPlain(t *testing.T, b *browser) {
	page := newPage(t, demo(), Access{Open: true})
	p := b.open(t, page.handler())
	command(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	p.visit("/")
	if got := eval[string](p, `document.querySelector("#live").innerText`); got != "as of 12:00:00 UTC" {
		t.Errorf("got %q; want when the page was made", got)
	}
	p.do(focus("#q"))
	p.keys("grafana" + kb.Enter)
	p.wait(`location.search === "?q=grafana" && document.querySelectorAll("#lbs tbody tr").length === 1`)
	p.do(click(`#lbs tbody a`))
	p.wait(`location.pathname === "/load-balancer" && document.querySelector("#members")`)
	p.do(click(`.back a`))
	p.wait(`document.querySelectorAll("#lbs tbody tr").length === 8`)
}

// A person logs in with a form; the token is in no address and no script sees
// the session.
func testLogin(t *testing.T, b *browser) {
	s := demo()
	page := newPage(t, s, Access{Token: func() []byte { return []byte(testToken) }})
	page.remember(s)
	p := b.open(t, page.handler())
	p.expect("401 (Unauthorized)")
	p.visit("/")
	p.wait(`location.pathname === "/login"`)
	p.size(390, 844, true)
	p.narrow("login")
	p.readable("login")
	p.shoot("login")
	p.keys("not the token" + kb.Enter) // the field has the focus
	p.wait(`document.querySelector("[role=alert]") && document.activeElement.id === "token"`)
	p.keys(testToken + kb.Enter)
	p.wait(`location.pathname === "/" && document.querySelector("#lbs")`)
	if got := eval[string](p, `document.cookie + location.href`); strings.Contains(got, testToken) || strings.Contains(got, sessionCookie) {
		t.Errorf("got %q; want neither token nor session", got)
	}
	p.narrow("logged in")
	p.do(click(`form[action=logout] button`))
	p.wait(`location.pathname === "/login"`)
	p.visit("/")
	p.wait(`location.pathname === "/login"`)
}
