package lab

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAbsent(t *testing.T) {
	for _, c := range []struct {
		name string
		has  func(string) bool
		want []string
	}{
		{"all there", func(string) bool { return true }, nil},
		{"bare", func(string) bool { return false },
			[]string{"containerd", "runc", "nftables", "iptables", "conntrack", "iproute2", "util-linux"}},
		{"containerd without its shim", func(p string) bool { return p != "containerd-shim-runc-v2" }, []string{"containerd"}},
		{"no conntrack", func(p string) bool { return p != "conntrack" }, []string{"conntrack"}},
	} {
		if diff := cmp.Diff(c.want, absent(c.has)); diff != "" {
			t.Errorf("%s: packages to install (-want +got):\n%s", c.name, diff)
		}
	}
}
