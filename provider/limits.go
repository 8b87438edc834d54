package provider

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/report"
)

// Limits returns every timeout and limit that is in force for a Service, and
// where it comes from.
func Limits(svc *v1.Service) []report.Limit {
	t := Translate(svc, ForwardingOf(svc))
	return limitsOf(svc, &t)
}

// limitsOf returns every timeout and limit that is in force for a Service, and
// where it comes from.
func limitsOf(svc *v1.Service, t *Translation) []report.Limit {
	l := t.LoadBalancer
	complained := map[string]bool{}
	for _, c := range t.Complaints {
		complained[c.Field] = true
	}
	from := func(a Annotation) string {
		if _, given := svc.Annotations[string(a)]; given && !complained[string(a)] {
			return string(a)
		}
		return "default"
	}
	var out []report.Limit
	add := func(name, value, from string) { out = append(out, report.Limit{Name: name, Value: value, From: from}) }
	orDefault := func(d healthcheck.Duration, otherwise time.Duration) string {
		return short(cmp.Or(d.D(), otherwise))
	}
	tcp, udp := false, false
	for _, li := range l.Listeners {
		tcp, udp = tcp || li.Protocol == lb.TCP, udp || li.Protocol == lb.UDP
	}
	if t.Direct {
		add("packets reach nodes", "as they are, with the client's address", wayFrom(svc))
	}
	if tcp && !t.Direct {
		connect := "the edge's own"
		if l.ConnectTimeout > 0 {
			connect = short(l.ConnectTimeout.D())
		}
		add("connect timeout", connect, from(AnnotationConnectTimeout))
	}
	if tcp {
		add("idle timeout of TCP connections", orDefault(l.IdleTimeout, lb.DefaultIdleTimeout), from(AnnotationIdleTimeout))
	}
	if udp {
		add("idle timeout of UDP sessions", orDefault(l.UDPIdleTimeout, lb.DefaultUDPIdleTimeout), from(AnnotationUDPIdleTimeout))
	}
	add("drain timeout", orDefault(l.DrainTimeout, lb.DefaultDrainTimeout), from(AnnotationDrainTimeout))
	limit := "the edge's own"
	if t.Direct {
		limit = "not limited"
	}
	if l.MaxConnections > 0 {
		limit = fmt.Sprintf("%d on each edge", l.MaxConnections)
	}
	add("connections at once", limit, from(AnnotationMaxConnections))
	algorithm := string(cmp.Or(l.Algorithm, lb.RoundRobin))
	if t.Direct && l.Algorithm != lb.SourceHash {
		algorithm = "hash of the client's address and port"
	}
	add("algorithm", algorithm, from(AnnotationAlgorithm))
	if l.Affinity != nil {
		add("client stays with its node", short(l.Affinity.Timeout.D()), "spec.sessionAffinity")
	} else {
		add("client stays with its node", "no", "default")
	}
	sources, sourcesFrom := "everybody", "default"
	if len(l.SourceRanges) > 0 {
		texts := make([]string, len(l.SourceRanges))
		for i, p := range l.SourceRanges {
			texts[i] = p.String()
		}
		sources, sourcesFrom = strings.Join(texts, ", "), "spec.loadBalancerSourceRanges"
		if len(svc.Spec.LoadBalancerSourceRanges) == 0 {
			sourcesFrom = v1.AnnotationLoadBalancerSourceRangesKey
		}
	}
	add("who may connect", sources, sourcesFrom)
	add("connections of a dead node", string(cmp.Or(l.OnUnhealthy, lb.OnUnhealthyReset)), from(AnnotationOnUnhealthy))
	open := "all nodes get traffic"
	if !l.FailOpen {
		open = "nodes that end but answer, else refused" // see lb.Group.LastResort
	}
	add("when no node is up", open, "spec.externalTrafficPolicy")
	return append(out, checkLimits(l.HealthCheck, from)...)
}

func checkLimits(h lb.HealthCheck, from func(Annotation) string) []report.Limit {
	if h.Protocol == healthcheck.None {
		return []report.Limit{{Name: "health check", Value: "none: all nodes count as up", From: from(AnnotationHealthCheckProtocol)}}
	}
	s := h.WithDefaults()
	protocol := from(AnnotationHealthCheckProtocol)
	for _, a := range []Annotation{AnnotationHealthCheckPort, AnnotationHealthCheckPath} {
		if f := from(a); protocol == "default" {
			protocol = f
		}
	}
	if s.Protocol == healthcheck.None {
		return []report.Limit{{Name: "health check", Value: "none: nodes are not checked and count as up", From: protocol}}
	}
	return []report.Limit{
		{Name: "health check", Value: fmt.Sprintf("%s on port %d%s", s.Protocol, h.Port, pathOf(s)), From: protocol},
		{Name: "health check interval", Value: short(s.Interval.D()), From: from(AnnotationHealthCheckInterval)},
		{Name: "health check timeout", Value: short(s.Timeout.D()), From: from(AnnotationHealthCheckTimeout)},
		{Name: "failures until down", Value: fmt.Sprint(s.UnhealthyThreshold), From: from(AnnotationHealthCheckUnhealthyThreshold)},
		{Name: "successes until up", Value: fmt.Sprint(s.HealthyThreshold), From: from(AnnotationHealthCheckHealthyThreshold)},
	}
}

// familiesLimit says in which address families nodes are reached.
func familiesLimit(svc *v1.Service, a aspect) report.Limit {
	l := report.Limit{Name: "nodes are reached over", Value: "the family of the client", From: "default"}
	if len(a.built.MemberFamilies) == 0 {
		return l
	}
	var names []string
	for _, f := range a.built.MemberFamilies {
		names = append(names, string(f))
	}
	l.Value, l.From = strings.Join(names, " and ")+", also for clients of the other family", "spec.ipFamilies"
	if len(svc.Spec.IPFamilies) > len(names) {
		l.From = "addresses of the nodes"
	}
	return l
}

func pathOf(s healthcheck.Spec) string {
	switch {
	case s.Protocol == healthcheck.GRPC && s.Path == "":
		return ", of the whole server"
	case s.Protocol == healthcheck.GRPC:
		return ", service " + s.Path
	case s.Path == "":
		return ""
	}
	return ", path " + s.Path
}

// short writes a duration without zero parts at its end: 1h for 1h0m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
