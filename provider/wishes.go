package provider

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/spelling"
)

// Limits of what is read from annotations.
const (
	maxAnnotation     = 4096 // bytes of one value
	maxConnections    = 100_000_000
	maxSharingKey     = 253
	maxProxyPorts     = 128
	maxSelectorClause = 32
)

// trafficPort, as a health check's port, is the node port of the first TCP port.
const trafficPort = "traffic-port"

// ReadAnnotations returns what the annotations of a Service ask for, and
// everything that is wrong with them, sorted by name. An annotation that cannot
// be honoured counts as if it were not there, but for the requested addresses:
// see Wishes.AddressesUnclear. Annotations without our prefix are not looked at.
func ReadAnnotations(annotations map[string]string) (Wishes, []Complaint) {
	var r reader
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if strings.HasPrefix(name, Prefix) {
			r.name, r.value = Annotation(name), strings.TrimSpace(annotations[name])
			r.read()
		}
	}
	r.checkTogether(annotations)
	return r.wishes, r.complaints
}

// A reader reads one annotation after the other.
type reader struct {
	name       Annotation
	value      string
	wishes     Wishes
	complaints []Complaint
}

// complain says what would be right, and what is done instead.
func (r *reader) complain(want, instead string) {
	r.complaints = append(r.complaints, Complaint{Field: string(r.name), Value: r.value, Want: want, Instead: instead})
}

func (r *reader) read() {
	if len(r.value) > maxAnnotation {
		r.complain(fmt.Sprintf("must not be longer than %d bytes", maxAnnotation), "it is not looked at")
		return
	}
	w := &r.wishes
	switch r.name {
	case AnnotationAddressPool:
		w.Pool = r.text(maxSharingKey, "any pool that admits the Service is used")
	case AnnotationAddresses:
		r.addresses()
	case AnnotationSharingKey:
		w.SharingKey = r.text(maxSharingKey, "the address is not shared")
	case AnnotationProxyProtocol:
		r.proxyProtocol()
	case AnnotationHealthCheckProtocol:
		w.Check.Protocol = healthcheck.Protocol(r.oneOf("the default is used", "tcp", "http", "https", "grpc", "none"))
	case AnnotationHealthCheckPort:
		r.checkPort()
	case AnnotationHealthCheckPath:
		w.Check.Path = r.text(healthcheck.MaxPath, "the default is used")
	case AnnotationHealthCheckInterval:
		w.Check.Interval = r.duration(healthcheck.MinInterval, healthcheck.MaxInterval)
	case AnnotationHealthCheckTimeout:
		w.Check.Timeout = r.duration(healthcheck.MinTimeout, healthcheck.MaxTimeout)
	case AnnotationHealthCheckUnhealthyThreshold:
		w.Check.UnhealthyThreshold = r.number(healthcheck.MaxThreshold, "the default is used")
	case AnnotationHealthCheckHealthyThreshold:
		w.Check.HealthyThreshold = r.number(healthcheck.MaxThreshold, "the default is used")
	case AnnotationNodeSelector:
		r.nodeSelector()
	case AnnotationAlgorithm:
		w.Algorithm = lb.Algorithm(r.oneOf("round-robin is used",
			string(lb.RoundRobin), string(lb.LeastConnections), string(lb.RandomTwoChoices), string(lb.SourceHash)))
	case AnnotationConnectTimeout:
		w.ConnectTimeout = r.duration(healthcheck.Duration(lb.MinTimeout), healthcheck.Duration(lb.MaxConnectTimeout))
	case AnnotationIdleTimeout:
		w.IdleTimeout = r.duration(healthcheck.Duration(lb.MinTimeout), healthcheck.Duration(lb.MaxTimeout))
	case AnnotationUDPIdleTimeout:
		w.UDPIdleTimeout = r.duration(healthcheck.Duration(lb.MinTimeout), healthcheck.Duration(lb.MaxTimeout))
	case AnnotationDrainTimeout:
		w.DrainTimeout = r.duration(healthcheck.Duration(lb.MinTimeout), healthcheck.Duration(lb.MaxTimeout))
	case AnnotationMaxConnections:
		w.MaxConnections = r.number(maxConnections, "connections are not limited")
	case AnnotationOnUnhealthy:
		w.OnUnhealthy = lb.OnUnhealthy(r.oneOf("reset is used", string(lb.OnUnhealthyReset), string(lb.OnUnhealthyDrain)))
	case AnnotationAssignedAddresses, AnnotationAssignedAt:
	default:
		r.unknown()
	}
}

// checkTogether complains about annotations that do not fit together.
func (r *reader) checkTogether(annotations map[string]string) {
	w := &r.wishes
	c := &w.Check
	at := func(name Annotation) { r.name, r.value = name, strings.TrimSpace(annotations[string(name)]) }
	if c.Protocol == healthcheck.None {
		for _, name := range checkDetails {
			if _, given := annotations[string(name)]; given && !r.complained(name) {
				at(name)
				r.complain(`must not be given with health-check-protocol "none"`, "it is not looked at")
			}
		}
		w.CheckPort, w.CheckTrafficPort, *c = 0, false, healthcheck.Spec{Protocol: healthcheck.None}
	}
	if c.Path != "" {
		at(AnnotationHealthCheckPath)
		r.checkPath()
	}
	if filled := c.WithDefaults(); filled.Timeout > filled.Interval {
		at(AnnotationHealthCheckTimeout)
		r.complain(fmt.Sprintf("must not be longer than the interval, %v", filled.Interval), "interval and timeout have their defaults")
		c.Interval, c.Timeout = 0, 0
	}
	slices.SortStableFunc(r.complaints, func(a, b Complaint) int { return strings.Compare(a.Field, b.Field) })
}

// checkDetails are the annotations that say more about a health check than
// whether there is one.
var checkDetails = []Annotation{
	AnnotationHealthCheckPort, AnnotationHealthCheckPath, AnnotationHealthCheckInterval, AnnotationHealthCheckTimeout,
	AnnotationHealthCheckUnhealthyThreshold, AnnotationHealthCheckHealthyThreshold,
}

func (r *reader) complained(name Annotation) bool {
	return slices.ContainsFunc(r.complaints, func(c Complaint) bool { return c.Field == string(name) })
}

// checkPath looks at the path, whose meaning depends on the protocol.
func (r *reader) checkPath() {
	c := &r.wishes.Check
	protocol := cmp.Or(c.Protocol, healthcheck.HTTP)
	if protocol == healthcheck.TCP {
		r.complain(`must not be given with health-check-protocol "tcp"`, "it is not looked at")
		c.Path = ""
		return
	}
	for _, fault := range (healthcheck.Spec{Protocol: protocol, Path: c.Path}).Validate() {
		r.complain(rightOf(fault), "the default is used")
		c.Path = ""
		return
	}
}

// rightOf returns what would be right of a fault that reads
// "path: "value": what would be right".
func rightOf(fault string) string {
	rest := strings.TrimPrefix(fault, "path: ")
	if value, err := strconv.QuotedPrefix(rest); err == nil {
		rest = strings.TrimPrefix(rest[len(value):], "...")
	}
	return strings.TrimPrefix(rest, ": ")
}

func (r *reader) checkPort() {
	if r.value == trafficPort {
		r.wishes.CheckTrafficPort = true
		return
	}
	n, err := strconv.ParseUint(r.value, 10, 16)
	if err != nil || n == 0 {
		r.complain("must be a number from 1 to 65535, or "+trafficPort, "the default port is used")
		return
	}
	r.wishes.CheckPort = uint16(n)
}

func (r *reader) oneOf(instead string, accepted ...string) string {
	if slices.Contains(accepted, r.value) {
		return r.value
	}
	last := len(accepted) - 1
	r.complain("must be "+strings.Join(accepted[:last], ", ")+" or "+accepted[last], instead)
	return ""
}

func (r *reader) text(most int, instead string) string {
	switch {
	case r.value == "":
		r.complain("must not be empty", instead)
	case len(r.value) > most:
		r.complain(fmt.Sprintf("must not be longer than %d bytes", most), instead)
	default:
		return r.value
	}
	return ""
}

func (r *reader) number(most int, instead string) int {
	n, err := strconv.Atoi(r.value)
	if err != nil || n < 1 || n > most {
		r.complain(fmt.Sprintf("must be a number from 1 to %d", most), instead)
		return 0
	}
	return n
}

func (r *reader) duration(least, most healthcheck.Duration) healthcheck.Duration {
	var d healthcheck.Duration
	if err := d.UnmarshalText([]byte(r.value)); err != nil || d < least || d > most {
		r.complain(fmt.Sprintf("must be a duration with unit from %v to %v, such as 500ms or 10s", least, most), "the default is used")
		return 0
	}
	return d
}

func (r *reader) addresses() {
	var addrs []netip.Addr
	for item := range strings.SplitSeq(r.value, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(item))
		same := func(b netip.Addr) bool { return lb.FamilyOf(a) == lb.FamilyOf(b) }
		if err != nil || a.Zone() != "" || slices.ContainsFunc(addrs, same) {
			r.complain("must be at most one IPv4 and one IPv6 address, separated by commas", "the Service gets no new address")
			r.wishes.AddressesUnclear = true
			return
		}
		addrs = append(addrs, a.Unmap())
	}
	r.wishes.Addresses = addrs
}

func (r *reader) proxyProtocol() {
	const want = "must be off, v1 or v2, or a list of port=word such as http=v2,8443=v1"
	word := func(s string) (lb.ProxyProtocol, bool) {
		switch s {
		case "off":
			return lb.ProxyOff, true
		case string(lb.ProxyV1), string(lb.ProxyV2):
			return lb.ProxyProtocol(s), true
		}
		return "", false
	}
	if p, ok := word(r.value); ok {
		r.wishes.Proxy = p
		return
	}
	ports := make(map[string]lb.ProxyProtocol)
	for item := range strings.SplitSeq(r.value, ",") {
		port, value, _ := strings.Cut(item, "=")
		port = strings.TrimSpace(port)
		p, ok := word(strings.TrimSpace(value))
		if _, twice := ports[port]; !ok || port == "" || twice || len(ports) == maxProxyPorts {
			r.complain(want, "no client address is announced")
			return
		}
		ports[port] = p
	}
	r.wishes.ProxyPorts = ports
}

func (r *reader) nodeSelector() {
	s, err := labels.Parse(r.value)
	if err != nil {
		r.complain("must be a label selector such as role=web,zone in (a,b)", "all nodes are used")
		return
	}
	clauses, _ := s.Requirements()
	if len(clauses) == 0 || len(clauses) > maxSelectorClause {
		r.complain(fmt.Sprintf("must have from 1 to %d clauses", maxSelectorClause), "all nodes are used")
		return
	}
	r.wishes.NodeSelector = s
}

// unknown complains about an annotation with our prefix that we do not know,
// and names the one that was probably meant.
func (r *reader) unknown() {
	want := "is not an annotation that eclusa knows"
	if r.name == WeightKey {
		r.complain("is an annotation or label of Nodes, not of Services", "it is not looked at")
		return
	}
	if near := spelling.Nearest(string(r.name), written); near != "" {
		want += fmt.Sprintf("; did you mean %s?", near)
	}
	r.complain(want, "it is not looked at")
}

// quoted bounds and quotes a value for a message.
func quoted(s string) string {
	const most = 128
	if len(s) > most {
		return fmt.Sprintf("%q...", s[:most])
	}
	return fmt.Sprintf("%q", s)
}
