package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/eclusa-lb/eclusa/version"
)

var (
	buildInfoDesc = prometheus.NewDesc("eclusa_ccm_build_info", "Always 1; the labels tell what runs.", []string{"version", "revision", "goversion"}, nil)
	leadingDesc   = prometheus.NewDesc("eclusa_ccm_leading", "1 while this process leads.", nil, nil)
	expiryDesc    = prometheus.NewDesc("eclusa_ccm_client_certificate_expiry_seconds", "When the certificate ends by which edges know us, in seconds since 1970.", nil, nil)
)

// collector measures what is the program's own.
type collector struct{ leader *leader }

// registerMetrics adds ours to those that the libraries serve.
func registerMetrics(l *leader) error {
	for _, c := range []prometheus.Collector{&collector{l}, l.provider.Collector()} {
		if err := legacyregistry.Registerer().Register(c); err != nil {
			return err
		}
	}
	return nil
}

// Describe names all metrics.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfoDesc, leadingDesc, expiryDesc} {
		to <- d
	}
}

// Collect measures.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	leads := 0.0
	if c.leader.leading.Load() {
		leads = 1
	}
	gauge(buildInfoDesc, 1, version.Number(), version.Revision(), version.Go())
	gauge(leadingDesc, leads)
	gauge(expiryDesc, float64(c.leader.creds.expires().Unix()))
}
