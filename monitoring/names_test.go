package monitoring_test

import (
	"slices"
	"testing"

	"github.com/eclusa-lb/eclusa/monitoring"
)

func TestMetricsIn(t *testing.T) {
	for expr, want := range map[string][]string{
		`up`: {"up"},
		`up == 0 and on (job, instance) last_over_time(a_info[1d])`:                         {"a_info", "up"},
		`histogram_quantile(0.99, sum by (le) (rate(b_bucket{x="y{z}",q=~"c"}[5m])))`:       {"b_bucket"},
		`sum without (x) (a{n="m"} * on (l) group_left (k) b) or vector(0) > bool 1e3`:      {"a", "b"},
		`max(a:b:c offset 5m) - time() >= 14 * 86400`:                                       {"a:b:c"},
		`count by (alertname) (ALERTS{alertstate="firing"}) unless ignoring (x) (c == NaN)`: {"ALERTS", "c"},
	} {
		got := monitoring.MetricsIn(expr)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", expr, got, want)
		}
	}
}
