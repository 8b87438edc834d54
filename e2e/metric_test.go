package e2e

import (
	"fmt"
	"net/http"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/eclusa-lb/eclusa/lab"
)

// managementOfEdge is where the lab's edges serve their metrics, on loopback.
const managementOfEdge = "http://127.0.0.1:9980/metrics"

// scrape reads all metrics of a program as Prometheus does.
func scrape(host *lab.Host, url string) (map[string]*dto.MetricFamily, error) {
	resp, err := host.HTTPClient().Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("scrape %s: %s", url, resp.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	return parser.TextToMetricFamilies(resp.Body)
}

// metric is the sum of the edge's metric over all series with the label.
func (c *cluster) metric(t *testing.T, name, label, value string) float64 {
	t.Helper()
	families, err := scrape(c.edge.Host, managementOfEdge)
	if err != nil {
		t.Fatal(err)
	}
	return sum(families[name], label, value)
}

// up reports whether the edge gives the node new connections.
func (c *cluster) up(t *testing.T, node string) bool {
	t.Helper()
	return c.metric(t, "eclusa_edge_check_up", "node", node) > 0
}

func sum(family *dto.MetricFamily, label, value string) float64 {
	var total float64
	for _, m := range family.GetMetric() {
		matches := label == ""
		for _, l := range m.GetLabel() {
			matches = matches || l.GetName() == label && l.GetValue() == value
		}
		if matches {
			total += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return total
}
