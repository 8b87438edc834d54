package nftables

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb/lbtest"
)

// checkInside returns what Check prints in a process of its own that is started by a
// command, if any, and with these flags.
func checkInside(t *testing.T, flags uintptr, command ...string) string {
	t.Helper()
	command = append(command, os.Args[0], "-test.run=^TestCheck$")
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "ECLUSA_CHECK_INSIDE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	if flags&unix.CLONE_NEWUSER != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(command, " "), err, out)
	}
	return string(out)
}

// TestCheckOthers: what others do that is in the engine's way is named, and nothing
// else.
func TestCheckOthers(t *testing.T) {
	inNamespaces(t, func(lbtest.Network) {
		if _, err := exec.LookPath("iptables-nft"); err != nil {
			lbtest.Lacking(t, "iptables is needed: %v", err)
		}
		complaints := func(direct bool) string {
			var all []string
			for _, i := range append(checkOthers(direct), checkMarks(direct)...) {
				all = append(all, i.Detail)
			}
			return strings.Join(all, "\n")
		}
		run(t, "nft", "add table inet harmless; add chain inet harmless c { type filter hook prerouting priority mangle; }; add rule inet harmless c meta mark set ct mark; add rule inet harmless c ct mark 7 ct label set 3")
		run(t, "iptables-nft", "-t", "mangle", "-A", "OUTPUT", "-j", "CONNMARK", "--restore-mark")
		if got := complaints(true); got != "" {
			t.Errorf("beside rules that change no connection's mark: got %q; want no complaint", got)
		}
		run(t, "nft", "add table inet other; add chain inet other marks { type filter hook prerouting priority mangle; }; add rule inet other marks ct mark set 0x80")
		run(t, "nft", "add chain inet other strict { type filter hook forward priority 0; policy drop; }")
		run(t, "iptables-nft", "-t", "mangle", "-A", "PREROUTING", "-j", "CONNMARK", "--set-xmark", "0x80/0x80")
		run(t, "ip", "link", "add", "bpfin.cali", "type", "veth", "peer", "name", "bpfout.cali")
		got := complaints(true)
		for _, want := range []string{
			`the chain "marks" of the table "other" sets ct mark`, `the chain "PREROUTING" of the table "mangle" sets ct mark`,
			`the chain "strict" of the table "other" drops`, "meta mark and 0xff000000 == 0xef000000", "there is the link bpfin.cali",
		} {
			if strings.Count(got, want) != 1 {
				t.Errorf("complaints with direct: got\n%s\nwant %q in it, once", got, want)
			}
		}
		if got := complaints(false); strings.Contains(got, "0xef000000") || strings.Contains(got, "bpfin.cali") {
			t.Errorf("complaints without direct: got\n%s\nwant nothing about it", got)
		}
	})
}

// TestCheck: what is there and what is missing is named, with what would be right.
func TestCheck(t *testing.T) {
	if os.Getenv("ECLUSA_CHECK_INSIDE") != "" {
		for _, i := range Check(Options{Direct: true}) {
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
		out := checkInside(t, 0, "setpriv", "--bounding-set=-all")
		for _, want := range []string{"nftables: missing true: ", "CAP_NET_ADMIN", "raw sockets: missing true: ", "CAP_NET_RAW"} {
			if !strings.Contains(out, want) {
				t.Errorf("without rights: got %s; want %q in it", out, want)
			}
		}
		// Root of a user namespace may write tables, but not as large ones as it likes.
		out = checkInside(t, unix.CLONE_NEWUSER|unix.CLONE_NEWNET)
		for _, want := range []string{"nftables: missing false: ", "send buffer: missing false: may have ", "net.core.wmem_max"} {
			if !strings.Contains(out, want) {
				t.Errorf("in a user namespace: got %s; want %q in it", out, want)
			}
		}
	})
}
