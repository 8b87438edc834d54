package edge

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// counted is what an engine could say of the first load balancer of testConfig.
func counted(addr string, node lb.NodeName) lb.RouteCounters {
	return lb.RouteCounters{
		Frontend: lb.Frontend{Addr: netip.MustParseAddr(addr), Port: 80, Protocol: lb.TCP},
		Owner:    lb.Owner{Cluster: "prod", UID: "u1"}, Name: "default/s1",
		Active: 2, Accepted: 10, Refused: map[lb.RefusedCause]uint64{lb.RefusedLimit: 3},
		Members: []lb.MemberCounters{{Node: node, Active: 2, Connections: 9, DialErrors: 1, BytesIn: 100, BytesOut: 1000}},
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, _ := up(t, 2)
		b.probes.say("10.0.0.2:10256", errRefused)
		b.status("prod", "n2 down", func(s lb.Status) bool { return s.Checks[theCheck]["n2"].State == healthcheck.Down })
		// Two addresses of one listener are one series.
		b.engine.SetCounters([]lb.RouteCounters{counted("192.0.0.1", "n1"), counted("192.0.0.2", "n1")})
		want := `
# HELP eclusa_edge_check_up Whether a node takes new connections as far as this check decides.
# TYPE eclusa_edge_check_up gauge
eclusa_edge_check_up{check="http:10256/healthz",cluster="prod",node="n1"} 1
eclusa_edge_check_up{check="http:10256/healthz",cluster="prod",node="n2"} 0
# HELP eclusa_edge_check_state Always 1; the labels tell the state of a node in a check and the kind of its last failure.
# TYPE eclusa_edge_check_state gauge
eclusa_edge_check_state{check="http:10256/healthz",cluster="prod",node="n1",reason="",state="up"} 1
eclusa_edge_check_state{check="http:10256/healthz",cluster="prod",node="n2",reason="refused",state="down"} 1
# HELP eclusa_edge_connections_total Connections and sessions taken.
# TYPE eclusa_edge_connections_total counter
eclusa_edge_connections_total{cluster="prod",listener="tcp/80",load_balancer="default/s1"} 20
# HELP eclusa_edge_connections_refused_total Connections turned away, by cause.
# TYPE eclusa_edge_connections_refused_total counter
eclusa_edge_connections_refused_total{cause="limit",cluster="prod",listener="tcp/80",load_balancer="default/s1"} 6
# HELP eclusa_edge_member_bytes_total Bytes passed on; in came from clients, out went to them.
# TYPE eclusa_edge_member_bytes_total counter
eclusa_edge_member_bytes_total{cluster="prod",direction="in",listener="tcp/80",load_balancer="default/s1",node="n1"} 200
eclusa_edge_member_bytes_total{cluster="prod",direction="out",listener="tcp/80",load_balancer="default/s1",node="n1"} 2000
# HELP eclusa_edge_load_balancers Load balancers by whether they are served on all their addresses and ports.
# TYPE eclusa_edge_load_balancers gauge
eclusa_edge_load_balancers{applied="false",cluster="dev"} 0
eclusa_edge_load_balancers{applied="false",cluster="prod"} 0
eclusa_edge_load_balancers{applied="true",cluster="dev"} 0
eclusa_edge_load_balancers{applied="true",cluster="prod"} 1
# HELP eclusa_edge_config_revision Revision of the configuration that the edge holds.
# TYPE eclusa_edge_config_revision gauge
eclusa_edge_config_revision{cluster="dev"} 0
eclusa_edge_config_revision{cluster="prod"} 1
# HELP eclusa_edge_state_saved Whether the configuration that is served is on the disk.
# TYPE eclusa_edge_state_saved gauge
eclusa_edge_state_saved{cluster="dev"} 1
eclusa_edge_state_saved{cluster="prod"} 1
`
		pedantic := prometheus.NewPedanticRegistry()
		b.edge.register(pedantic)
		want += "# HELP eclusa_edge_build_info Always 1; the labels tell what runs.\n# TYPE eclusa_edge_build_info gauge\n" +
			fmt.Sprintf("eclusa_edge_build_info{engine=\"fake\",goversion=%q,revision=\"0123abc\",version=\"v1.2.3\"} 1\n", runtime.Version())
		err := testutil.GatherAndCompare(pedantic, strings.NewReader(want), "eclusa_edge_build_info",
			"eclusa_edge_check_up", "eclusa_edge_check_state", "eclusa_edge_connections_total", "eclusa_edge_connections_refused_total",
			"eclusa_edge_member_bytes_total", "eclusa_edge_load_balancers", "eclusa_edge_config_revision", "eclusa_edge_state_saved")
		if err != nil {
			t.Error(err)
		}
		problems, err := testutil.GatherAndLint(b.edge.Registry())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		b.stop()
	})
}

func TestSeriesAreBounded(t *testing.T) {
	b := newRig(t)
	var many []lb.RouteCounters
	b.edge.maxSeries = 1000
	for i := range b.edge.maxSeries / 5 {
		c := counted("192.0.0.1", lb.NodeName(fmt.Sprint("n", i)))
		c.Name = fmt.Sprint("default/s", i)
		many = append(many, c)
	}
	b.engine.SetCounters(many)
	n, err := testutil.GatherAndCount(b.edge.Registry(), "eclusa_edge_member_connections_total", "eclusa_edge_connections_total",
		"eclusa_edge_connections_active", "eclusa_edge_connections_refused_total", "eclusa_edge_member_connections_active",
		"eclusa_edge_member_dial_errors_total", "eclusa_edge_member_bytes_total")
	if err != nil {
		t.Fatal(err)
	}
	if n > b.edge.maxSeries || n < b.edge.maxSeries-10 {
		t.Errorf("series: got %d; want at most %d and nearly as many", n, b.edge.maxSeries)
	}
	want := "# HELP eclusa_edge_metrics_truncated Whether series of checks, load balancers, listeners and members were left out because there are more than 200,000.\n# TYPE eclusa_edge_metrics_truncated gauge\neclusa_edge_metrics_truncated 1\n"
	if err := testutil.GatherAndCompare(b.edge.Registry(), strings.NewReader(want), "eclusa_edge_metrics_truncated"); err != nil {
		t.Error(err)
	}
}

func TestManagement(t *testing.T) {
	b := newRig(t)
	get := func(path string) (int, string) {
		t.Helper()
		w := httptest.NewRecorder()
		b.edge.Management().ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		body, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(body)
	}
	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("/healthz before Run: got %d %q; want ok", code, body)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable || !strings.Contains(body, "no table is in force yet") {
		t.Errorf("/readyz before Run: got %d %q; want 503 with the reason", code, body)
	}
	b.run()
	b.table("the first table", func(lb.Table) bool { return true })
	b.set("prod", b.claim("prod"), testConfig(1, 1, 1))
	b.status("prod", "applied", func(s lb.Status) bool { return s.Revision == 1 })
	if code, body := get("/readyz"); code != http.StatusOK {
		t.Errorf("/readyz: got %d %q; want ok", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "process_open_fds") || !strings.Contains(body, "eclusa_edge_apply_seconds_count") {
		t.Errorf("/metrics: got %d with %d bytes; want the metrics of edge and process", code, len(body))
	}
	if code, _ := get("/other"); code != http.StatusNotFound {
		t.Errorf("/other: got %d; want 404", code)
	}
	b.stop()
}

// TestSaveUnderWay tells how long a save takes that does not come to its end.
func TestSaveUnderWay(t *testing.T) {
	var s clusterStats
	begun := time.Unix(1000, 0)
	s.saveTook(time.Second)
	s.saveBegan(begun)
	for after, want := range map[time.Duration]time.Duration{500 * time.Millisecond: time.Second, time.Minute: time.Minute} {
		if got := s.lastSave(begun.Add(after)); got != want {
			t.Errorf("%s after it began the last save took %s, want %s", after, got, want)
		}
	}
	s.saveTook(2 * time.Second)
	if got := s.lastSave(begun.Add(time.Hour)); got != 2*time.Second {
		t.Errorf("after its end it took %s, want 2s", got)
	}
}
