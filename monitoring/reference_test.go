package monitoring_test

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"

	"github.com/eclusa-lb/eclusa/monitoring"
)

var update = flag.Bool("update", false, "rewrite docs/reference/metrics.md")

// labels says what each label means and how many values it has. The first part
// bounds the number of series; a label without one adds none, because a series of
// the others has but one value of it at a time.
var labels = map[string]struct{ bound, meaning string }{
	"applied":       {"2", "`true` or `false`: whether all addresses and ports are served"},
	"cause":         {"3", "why a connection was turned away: `no-member` (none can serve), `source` (its address may not) or `limit`"},
	"certificate":   {"", "`api` and `client-ca` on edges, `client` and `edge-ca` of the cloud-controller-manager"},
	"check":         {"checks", "a health check, such as `http:10256/healthz`: one for all Services of Cluster policy, and one for each Service of Local policy"},
	"cluster":       {"clusters", "a cluster in the edge's configuration. If Prometheus adds a label of this name to its targets, it calls ours `exported_cluster`"},
	"direction":     {"2", "`in` came from clients, `out` went to them"},
	"edge":          {"edges", "the name of an Edge object"},
	"engine":        {"", "the edge's data plane, such as `proxy`"},
	"goversion":     {"", "the version of Go"},
	"kind":          {"3", "`Service`, `AddressPool` or `Edge`"},
	"listener":      {"ports of a Service", "protocol and port, such as `tcp/80`"},
	"load_balancer": {"Services", "namespace and name of a Service, such as `default/web`"},
	"node":          {"nodes", "the name of a node; of those that the check, or the Service, has"},
	"outcome":       {"5", "`written`, `confirmed`, `conflict`, `gone` or `error`"},
	"pool":          {"", "an AddressPool, or on edges the pool of nodes that a load balancer has"},
	"reason":        {"", "the kind of a failure: `refused`, `timeout`, `reset`, `unreachable`, `http-status`, `grpc-status`, `protocol`, `tls`, or empty; of `eclusa_ccm_services_by_backends` the reason of a condition"},
	"revision":      {"", "the commit that the program was built from"},
	"state":         {"", "of a node in a check `up`, `draining`, `down`, `unknown` or `unchecked`; of a Service see there"},
	"subject":       {"CAs", "the common name of a certificate"},
	"type":          {"", "a kind of problem: `address-held`, `invalid`, `unsupported`, `exhausted` or `not-found`"},
	"version":       {"", "the version of the program"},
}

// bounds are those of metrics whose labels do not tell.
var bounds = map[string]string{
	"eclusa_ccm_services":                              "6",
	"eclusa_ccm_services_by_backends":                  "10",
	"eclusa_ccm_edge_backends":                         "edges × up to 18 states with reasons",
	"eclusa_ccm_pool_addresses":                        "AddressPools",
	"eclusa_ccm_pool_ready":                            "AddressPools",
	"eclusa_ccm_pool_addresses_used":                   "AddressPools",
	"eclusa_ccm_pool_addresses_quarantined":            "AddressPools",
	"eclusa_edge_load_balancer_info":                   "clusters × Services",
	"eclusa_edge_load_balancer_problems":               "Services with a problem × up to 5 kinds",
	"eclusa_edge_certificate_expiry_timestamp_seconds": "1 + CAs",
	"eclusa_ccm_certificate_expiry_timestamp_seconds":  "1 + CAs",
}

const referenceFile = "../docs/reference/metrics.md"

// TestReference writes the reference from what the programs expose.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString(`# Metrics

<!-- Written by ` + "`make generate`" + ` from what the programs expose in their tests. Do not edit it. -->

Edges serve their metrics on the management listener (` + "`management.listen`" + `, plain HTTP, path /metrics), the
cloud-controller-manager on its secure port (HTTPS, path /metrics, for those who may ` + "`get`" + ` the non-resource URL
/metrics). Values are collected when they are asked for: what is gone leaves no series behind.

Beside these, both programs have Prometheus' usual ` + "`process_*` and `go_*`" + `, and the cloud-controller-manager what the
libraries of Kubernetes tell, among it ` + "`rest_client_requests_total` (calls to the API server by code and method), " +
		"`leader_election_master_status` and `workqueue_*`" + `.

**How many series.** The column *series* says per program how many there are at most. Edges stop at 200,000 series of
checks, load balancers, listeners and members, always leave out the same ones, and say so with
` + "`eclusa_edge_metrics_truncated`" + `. The cloud-controller-manager has no metric with a series per Service.

**The health of each backend of a Service.** Services share health checks, so an edge tells the state of a node once per
check, and of each Service which check it has:

` + "```" + `
eclusa_edge_check_state{cluster="prod"}
  * on (job, instance, cluster, check) group_left (load_balancer)
eclusa_edge_load_balancer_info{cluster="prod", load_balancer="default/web"}
` + "```" + `

has one series per edge and node, with the labels ` + "`state` and `reason`" + `. If the Service has a node selector, only some
of these nodes are its own; ` + "`eclusa_edge_load_balancer_members` and `eclusa_edge_load_balancer_members_up`" + ` count
exactly its own.

`)
	used := map[string]bool{}
	writeTable(t, &b, "The edge", readFamilies(t, edgeExposition), used)
	writeTable(t, &b, "The cloud-controller-manager", readFamilies(t, ccmExposition), used)
	b.WriteString("## Labels\n\n| label | values | meaning |\n|---|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		if !used[name] {
			t.Errorf("label %q is explained, and no metric has it", name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, labels[name].bound, labels[name].meaning)
	}
	if err := monitoring.Golden(referenceFile, b.String(), *update); err != nil {
		t.Error(err)
	}
}

func writeTable(t *testing.T, b *strings.Builder, title string, families map[string]*dto.MetricFamily, used map[string]bool) {
	t.Helper()
	fmt.Fprintf(b, "## %s\n\n| name | type | labels | meaning | series |\n|---|---|---|---|---|\n", title)
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := families[name]
		var names, factors []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			about, known := labels[l.GetName()]
			if !known {
				t.Errorf("%s: label %q is explained nowhere: add it, with the number of its values, to labels", name, l.GetName())
			}
			used[l.GetName()] = true
			names = append(names, "`"+l.GetName()+"`")
			if about.bound != "" {
				factors = append(factors, about.bound)
			}
		}
		series := strings.Join(factors, " × ")
		if bound, special := bounds[name]; special {
			series = bound
		}
		if series == "" {
			series = "1"
		}
		kind := strings.ToLower(f.GetType().String())
		if f.GetType() == dto.MetricType_HISTOGRAM {
			series = fmt.Sprintf("%d", len(f.GetMetric()[0].GetHistogram().GetBucket())+2)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", name, kind, strings.Join(names, ", "), strings.ReplaceAll(f.GetHelp(), "|", `\|`), series)
	}
	b.WriteString("\n")
}
