package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/eclusa-lb/eclusa/lb/rest"
	"github.com/eclusa-lb/eclusa/version"
)

const expiryHelp = "When a certificate in use expires, in seconds since 1970: the one by which edges know this cluster (client), and those of the CAs that edges' certificates may come from (edge-ca)."

var (
	buildInfoDesc = prometheus.NewDesc("eclusa_ccm_build_info", "Always 1; the labels tell what runs.", []string{"version", "revision", "goversion"}, nil)
	leadingDesc   = prometheus.NewDesc("eclusa_ccm_leading", "1 while this process leads, else 0.", nil, nil)
	expiryDesc    = prometheus.NewDesc("eclusa_ccm_certificate_expiry_timestamp_seconds", expiryHelp, []string{"certificate", "subject"}, nil)
	nodePortsDesc = prometheus.NewDesc("eclusa_ccm_node_ports", "Node ports that Services of the cluster can have, if nodePortRange is configured; the API server does not tell.", nil, nil)
)

// collector measures what is the program's own.
type collector struct {
	leading   func() bool
	creds     *credentials
	nodePorts int // zero: not configured
}

// registerMetrics adds ours to those that the libraries serve.
func registerMetrics(l *leader, own Config) error {
	for _, c := range []prometheus.Collector{&collector{l.leading.Load, l.creds, own.NodePortRange.size()}, l.provider.Collector()} {
		if err := legacyregistry.Registerer().Register(c); err != nil {
			return err
		}
	}
	return nil
}

// Describe names all metrics.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{buildInfoDesc, leadingDesc, expiryDesc, nodePortsDesc} {
		to <- d
	}
}

// Collect measures.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	leads := 0.0
	if c.leading() {
		leads = 1
	}
	gauge(buildInfoDesc, 1, version.Number(), version.Revision(), version.Go())
	gauge(leadingDesc, leads)
	if c.nodePorts > 0 {
		gauge(nodePortsDesc, float64(c.nodePorts))
	}
	leaf, cas, err := c.creds.inUse()
	if err != nil {
		to <- prometheus.NewInvalidMetric(expiryDesc, err)
		return
	}
	gauge(expiryDesc, float64(leaf.NotAfter.Unix()), "client", rest.SubjectOf(leaf))
	for subject, at := range cas {
		gauge(expiryDesc, float64(at.Unix()), "edge-ca", subject)
	}
}
