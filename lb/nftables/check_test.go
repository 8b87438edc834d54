package nftables

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// TestCheck: what is there and what is missing is named, with what would be right.
func TestCheck(t *testing.T) {
	if os.Getenv("ECLUSA_CHECK_INSIDE") != "" {
		for _, i := range Check(Options{}) {
			fmt.Printf("%s: missing %v: %s\n", i.Name, i.Missing, i.Detail)
		}
		return
	}
	inNamespaces(t, func(lbtest.Network) {
		for _, i := range Check(Options{}) {
			if i.Missing {
				t.Errorf("with every right: got %q missing: %s", i.Name, i.Detail)
			}
			if strings.HasPrefix(i.Name, "source addresses") && (!i.Doubtful || !strings.Contains(i.Detail, "nftables.sourceAddresses")) {
				t.Errorf("without source addresses: got %+v; want told what that costs, and where to give some", i)
			}
		}
		if os.Geteuid() != 0 {
			return // whoever has no rights is the reader of this test
		}
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set=-all", os.Args[0], "-test.run=^TestCheck$")
		cmd.Env = append(os.Environ(), "ECLUSA_CHECK_INSIDE=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("run without capabilities: %v: %s", err, out)
		}
		for _, want := range []string{"nftables: missing true: ", "CAP_NET_ADMIN", "raw sockets: missing true: ", "CAP_NET_RAW"} {
			if !strings.Contains(string(out), want) {
				t.Errorf("without rights: got %s; want %q in it", out, want)
			}
		}
	})
}
