package contender

import (
	"context"
	"fmt"
	"net/netip"
	"text/template"

	"github.com/eclusa-lb/eclusa/lb"
)

// kubeproxy is what kube-proxy writes in its mode nftables, by hand: a map of
// verdicts from address and port to the chain of a Service, one chain for each
// Service and one for each endpoint. Each of these chains counts connections, and
// connection tracking counts packets and bytes, which is what eclusa counts.
// kube-proxy takes the edge's own address as the source; the variant with a pool
// takes eclusa's cure for what follows from that, so that rules can be compared with
// rules.
type kubeproxy struct{ pool bool }

func (k kubeproxy) Name() string {
	if k.pool {
		return "rules-pool"
	}
	return "rules"
}

func (k kubeproxy) Title() string {
	if k.pool {
		return "plain nftables with a source pool"
	}
	return "plain nftables"
}

func (kubeproxy) Version() (string, error) { return firstLine("nft", "-v") }
func (kubeproxy) Carries(lb.Protocol) bool { return true }

// PoolSize is how many source addresses there are where there is a pool.
const PoolSize = 32

var kubeproxyRules = template.Must(template.New("rules").Parse(`table ip bench {
	chain masquerading {
		mark and 0x4000 == 0 return
		mark set mark xor 0x4000
{{- if .Sources}}
		meta l4proto { tcp, udp } snat to numgen random mod {{len .Sources}} map { {{range $i, $a := .Sources}}{{if $i}}, {{end}}{{$i}} : {{$a}}{{end}} }
{{- else}}
		masquerade fully-random
{{- end}}
	}
{{- range $s := .Services}}
{{- range $i, $m := $.All}}
	chain endpoint-{{$s.Name}}-{{$i}} {
		counter
		ip saddr {{$m}} mark set mark or 0x4000
		meta l4proto {{$s.Protocol}} dnat to {{$m}}:{{$s.TargetPort}}
	}
{{- end}}
	chain service-{{$s.Name}} {
		counter
		numgen random mod {{len $.Members}} vmap { {{range $i, $m := $.Members}}{{if $i}}, {{end}}{{$i}} : goto endpoint-{{$s.Name}}-{{$m}}{{end}} }
	}
	chain external-{{$s.Name}} {
		mark set mark or 0x4000
		goto service-{{$s.Name}}
	}
{{- end}}
	map service-ips {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = {
{{- range $s := .Services}}
			{{$s.Addr}} . {{$s.Protocol}} . {{$s.Port}} : goto external-{{$s.Name}},
{{- end}}
		}
	}
	chain services {
		ip daddr . meta l4proto . th dport vmap @service-ips
	}
	chain nat-prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}
	chain nat-output {
		type nat hook output priority -100; policy accept;
		jump services
	}
	chain nat-postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		jump masquerading
	}
}
`))

// kubeproxyChange is what a change of members is: every chain of a Service whose
// endpoints have changed is written anew.
var kubeproxyChange = template.Must(template.New("change").Parse(`
{{- range $s := .Services}}
flush chain ip bench service-{{$s.Name}}
add rule ip bench service-{{$s.Name}} counter
add rule ip bench service-{{$s.Name}} numgen random mod {{len $.Members}} vmap { {{range $i, $m := $.Members}}{{if $i}}, {{end}}{{$i}} : goto endpoint-{{$s.Name}}-{{$m}}{{end}} }
{{- end}}
`))

// service is a port of a load balancer as kube-proxy sees it.
type service struct {
	Frontend
	Name string
	Addr netip.Addr
}

func services(others int) (all []service) {
	for _, f := range Frontends {
		all = append(all, service{f, fmt.Sprintf("%s-%d", f.Protocol, f.Port), VIP(0)})
	}
	for i := range others {
		all = append(all, service{Frontends[0], fmt.Sprintf("other-%d", i), VIP(1 + i)})
	}
	return all
}

// values are what the templates need.
func (k kubeproxy) values(s Setup) map[string]any {
	var all []netip.Addr
	var members []int
	for i := range Nodes {
		all = append(all, NodeAddr(i))
		for _, m := range s.Members {
			if m == NodeAddr(i) {
				members = append(members, i)
			}
		}
	}
	v := map[string]any{"Services": services(s.Others), "All": all, "Members": members}
	if k.pool {
		v["Sources"] = Sources(PoolSize)
	}
	return v
}

func (k kubeproxy) Configuration(s Setup, _ string) (string, error) {
	return render(kubeproxyRules, k.values(s))
}

func (k kubeproxy) Start(_ context.Context, n *Network, s Setup, dir string) (Running, error) {
	text, err := k.Configuration(s, dir)
	if err != nil {
		return nil, err
	}
	if err := n.Edge.Net(func() error { return write("net/netfilter/nf_conntrack_acct", "1") }); err != nil {
		return nil, err
	}
	if _, err := n.Edge.Run(text, "nft", "-f", "-"); err != nil {
		return nil, err
	}
	r := &kubeproxyRunning{kubeproxy: k, network: n}
	if err := n.Client.Reach(netip.AddrPortFrom(VIP(0), RequestFrontend), startPatience); err != nil {
		r.Stop()
		return nil, err
	}
	return r, nil
}

type kubeproxyRunning struct {
	kubeproxy
	network *Network
}

func (r *kubeproxyRunning) Targets(port uint16) []netip.AddrPort { return vipTargets(port) }
func (r *kubeproxyRunning) PIDs() []int                          { return nil }

func (r *kubeproxyRunning) Set(_ context.Context, s Setup) error {
	s.Others = 0 // nobody asks those, and each Service is a change of its own
	text, err := render(kubeproxyChange, r.values(s))
	if err == nil {
		_, err = r.network.Edge.Run(text, "nft", "-f", "-")
	}
	return err
}

func (r *kubeproxyRunning) Stop() {
	_, _ = r.network.Edge.Run("delete table ip bench\n", "nft", "-f", "-")
}
