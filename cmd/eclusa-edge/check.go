package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/eclusa-lb/eclusa/configfile"
	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// readConfig reads a configuration file. Everything that is wrong with it comes
// back in one error of several lines, each with file, line and key.
func readConfig(path string) (Config, error) {
	c := DefaultConfig()
	if err := configfile.Read(path, &c); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Check complains about what is wrong in meaning.
func (c *Config) Check(f *configfile.File) { checker{f}.check(*c) }

// A checker complains to the file that a configuration was read from.
type checker struct{ *configfile.File }

func (k checker) check(c Config) {
	k.name("name", c.Name, "edge-1")
	k.path("stateDir", c.StateDir)
	k.listen("api.listen", c.API.Listen)
	k.path("api.certFile", c.API.CertFile)
	k.path("api.keyFile", c.API.KeyFile)
	k.path("api.clientCAFile", c.API.ClientCAFile)
	k.between("api.maxBodyBytes", c.API.MaxBodyBytes, 1<<10, 1<<30)
	k.between("api.requestsPerSecond", int64(c.API.RequestsPerSecond), 1, 100000)
	k.listen("management.listen", c.Management.Listen)
	if c.API.Listen == c.Management.Listen && c.API.Listen.Port() != 0 {
		k.Complain("management.listen", "%s: is the address of api.listen too; they must differ", c.Management.Listen)
	}
	k.management(c.Management)
	k.OneOf("engine", c.Engine, engineProxy, engineNftables, engineAuto)
	k.OneOf("announce.mode", c.Announce.Mode, announceNone, announceInterface)
	if c.Announce.Mode == announceInterface && c.Announce.Interface == "" {
		k.Complain("announce.interface", `missing; mode "interface" needs the name of a network interface such as eth0`)
	}
	if c.Announce.Mode == announceNone && c.Announce.Interface != "" {
		k.Complain("announce.interface", `%q: has no meaning with mode "none"; set mode to "interface" or remove it`, c.Announce.Interface)
	}
	k.between("health.probesPerSecond", int64(c.Health.ProbesPerSecond), 1, 1000000)
	k.proxy(c.Proxy)
	k.nftables(c.Nftables)
	k.duration("drainTimeout", c.DrainTimeout, 0, 24*time.Hour)
	k.duration("upgradeDrainTimeout", c.UpgradeDrainTimeout, 0, 7*24*time.Hour)
	k.OneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	k.OneOf("log.format", c.Log.Format, "console", "json")
	k.clusters(c.Clusters)
}

func (k checker) management(m ManagementConfig) {
	for _, f := range []struct{ key, path string }{
		{"tokenFile", m.TokenFile}, {"certFile", m.CertFile}, {"keyFile", m.KeyFile}, {"clientCAFile", m.ClientCAFile},
	} {
		if f.path != "" {
			k.path("management."+f.key, f.path)
		}
	}
	switch {
	case m.CertFile != "" && m.KeyFile == "":
		k.Complain("management.keyFile", "missing; certFile needs the key of the certificate")
	case m.CertFile == "" && m.KeyFile != "":
		k.Complain("management.certFile", "missing; keyFile needs its certificate")
	case m.CertFile == "" && m.ClientCAFile != "":
		k.Complain("management.clientCAFile", "%q: client certificates need HTTPS; set certFile and keyFile too, or remove it", m.ClientCAFile)
	}
}

func (k checker) proxy(p ProxyConfig) {
	const most = 16 << 20
	k.duration("proxy.dialTimeout", p.DialTimeout, 10*time.Millisecond, time.Minute)
	k.between("proxy.maxConnections", int64(p.MaxConnections), 0, most)
	k.between("proxy.udpSessionsPerFrontend", int64(p.UDPSessionsPerFrontend), 1, most)
	k.between("proxy.udpSessionsPerSource", int64(p.UDPSessionsPerSource), 1, most)
}

// maxSources is more source addresses than any pool of members can make use of.
const maxSources = 256

func (k checker) nftables(n NftablesConfig) {
	k.ranges("nftables.sourceAddresses", n.SourceAddresses, false)
	if !n.SourceNAT && len(n.SourceAddresses) > 0 {
		k.Complain("nftables.sourceAddresses", "have no meaning without nftables.sourceNAT, which lets members see the clients' own addresses")
	}
	total := 0
	for i, p := range n.SourceAddresses {
		if !p.IsValid() {
			continue
		}
		at := fmt.Sprintf("nftables.sourceAddresses[%d]", i)
		a := p.Addr()
		if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			k.Complain(at, "%s: must be addresses that members can answer", p)
		}
		for _, q := range n.SourceAddresses[:i] {
			if p != q && p.Overlaps(q) {
				k.Complain(at, "%s: overlaps %s", p, q)
			}
		}
		if bits := a.BitLen() - p.Bits(); bits <= 16 {
			total += 1 << bits
		} else {
			total = maxSources + 1
		}
	}
	if total > maxSources {
		k.Complain("nftables.sourceAddresses", "%d ranges hold more than %d addresses; 8 to 32 suffice", len(n.SourceAddresses), maxSources)
	}
}

func (k checker) clusters(clusters []ClusterConfig) {
	if len(clusters) == 0 {
		k.Complain("clusters", "missing; the edge needs at least one cluster to serve")
	}
	names := make(map[string]int)
	for i, c := range clusters {
		key := fmt.Sprintf("clusters[%d]", i)
		k.name(key+".name", c.Name, "prod")
		if first, ok := names[c.Name]; ok && c.Name != "" {
			k.Complain(key+".name", "%q: clusters[%d] on line %d has this name already", c.Name, first, k.Line(fmt.Sprintf("clusters[%d].name", first)))
		}
		names[c.Name] = i
		k.ranges(key+".addressRanges", c.AddressRanges, true)
		k.ranges(key+".nodeRanges", c.NodeRanges, true)
		k.ranges(key+".sharedRanges", c.SharedRanges, false)
		for j, s := range c.SharedRanges {
			if s.IsValid() && !within(s, c.AddressRanges) {
				k.Complain(fmt.Sprintf("%s.sharedRanges[%d]", key, j), "%s: does not lie within any of the cluster's addressRanges", s)
			}
		}
		const most = 1 << 20
		k.between(key+".maxLoadBalancers", int64(c.MaxLoadBalancers), 1, most)
		k.between(key+".maxListeners", int64(c.MaxListeners), 1, most)
		k.between(key+".maxNodes", int64(c.MaxNodes), 1, most)
		for j := range i {
			k.overlap(clusters, j, i)
		}
	}
}

// overlap complains about ranges that two clusters have both and do not share.
func (k checker) overlap(clusters []ClusterConfig, first, second int) {
	a, b := clusters[first], clusters[second]
	for i, p := range a.AddressRanges {
		for j, q := range b.AddressRanges {
			if !p.IsValid() || !q.IsValid() || !p.Overlaps(q) {
				continue
			}
			both := p
			if q.Bits() > p.Bits() {
				both = q
			}
			if within(both, a.SharedRanges) && within(both, b.SharedRanges) {
				continue
			}
			k.Complain(fmt.Sprintf("clusters[%d].addressRanges[%d]", second, j),
				"%s of cluster %q: overlaps %s of cluster %q on line %d; separate them, or list %s in sharedRanges of both",
				q, b.Name, p, a.Name, k.Line(fmt.Sprintf("clusters[%d].addressRanges[%d]", first, i)), both)
		}
	}
}

// within tells whether one of the ranges contains all of p.
func within(p netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool {
		return r.IsValid() && r.Bits() <= p.Bits() && r.Contains(p.Addr())
	})
}

func (k checker) ranges(key string, ranges []netip.Prefix, required bool) {
	if required && len(ranges) == 0 {
		k.Complain(key, "missing; a list of ranges such as 192.0.2.0/24 is required")
	}
	for i, p := range ranges {
		at := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case !p.IsValid():
		case p != p.Masked():
			k.Complain(at, "%s: has bits beyond its length; did you mean %s?", p, p.Masked())
		case p.Addr().Is4In6():
			k.Complain(at, "%s: write IPv4 ranges as IPv4", p)
		case slices.Contains(ranges[:i], p):
			k.Complain(at, "%s: is in the list already", p)
		}
	}
}

func (k checker) listen(key string, a netip.AddrPort) {
	switch {
	case !a.IsValid():
		k.Complain(key, "missing; an address and a port such as 192.0.2.10:7443 is required")
	case a.Addr().IsUnspecified():
		k.Complain(key, "%s: a wildcard address would make it reachable through the addresses of load balancers; name one address of this machine", a)
	case a.Addr().IsMulticast():
		k.Complain(key, "%s: must not be a multicast address", a)
	case a.Port() == 0:
		k.Complain(key, "%s: the port must not be 0", a)
	}
}

func (k checker) name(key, name, example string) {
	if name == "" {
		k.Complain(key, "missing; a name such as %q is required", example)
		return
	}
	if !validName(name) {
		k.Complain(key, "%q: must be lower-case letters, digits, \"-\" and \".\", begin and end with a letter or digit, and be at most 63 long", name)
	}
}

func (k checker) path(key, path string) {
	switch {
	case path == "":
		k.Complain(key, "missing; the absolute path of a file is required")
	case !filepath.IsAbs(path):
		k.Complain(key, "%q: must be an absolute path", path)
	}
}

func (k checker) between(key string, v, low, high int64) {
	if v < low || v > high {
		k.Complain(key, "%d: must be from %d to %d", v, low, high)
	}
}

func (k checker) duration(key string, v healthcheck.Duration, low, high time.Duration) {
	if v.D() < low || v.D() > high {
		k.Complain(key, "%s: must be from %s to %s", v, low, high)
	}
}

// validName tells whether a name can be a certificate's common name, a file's
// name and a Kubernetes object's name.
func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alphanumeric && (i == 0 || i == len(s)-1 || c != '-' && c != '.') {
			return false
		}
	}
	return true
}

// policy returns what the cluster may do, in the words of package lb.
func (c ClusterConfig) policy() lb.Policy {
	return lb.Policy{
		AddressRanges: c.AddressRanges, Shared: c.SharedRanges, NodeRanges: c.NodeRanges,
		MaxLoadBalancers: c.MaxLoadBalancers, MaxListeners: c.MaxListeners, MaxNodes: c.MaxNodes,
	}
}
