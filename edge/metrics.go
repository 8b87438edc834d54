package edge

import (
	"github.com/prometheus/client_golang/prometheus"
)

func newRegistry(*Edge) *prometheus.Registry { return prometheus.NewPedanticRegistry() }
