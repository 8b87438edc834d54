package main

import (
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/eclusa-lb/eclusa/lb/rest"
)

var descExpiry = prometheus.NewDesc("eclusa_edge_certificate_expiry_timestamp_seconds",
	"When a certificate in use expires, in seconds since 1970: the API's own (api), and those of the CAs that clusters' certificates may come from (client-ca).",
	[]string{"certificate", "subject"}, nil)

// expiry tells of certificates that nobody renews.
type expiry struct{ id *identity }

// Describe sends the description.
func (expiry) Describe(ch chan<- *prometheus.Desc) { ch <- descExpiry }

// Collect looks at the files, so that a renewal is seen though no client calls.
func (e expiry) Collect(ch chan<- prometheus.Metric) {
	send := func(at time.Time, labels ...string) {
		ch <- prometheus.MustNewConstMetric(descExpiry, prometheus.GaugeValue, float64(at.Unix()), labels...)
	}
	e.id.current()
	e.id.mu.Lock()
	leaf, cas := e.id.cert.Leaf, maps.Clone(e.id.cas)
	e.id.mu.Unlock()
	send(leaf.NotAfter, "api", rest.SubjectOf(leaf))
	for subject, at := range cas {
		send(at, "client-ca", subject)
	}
}
