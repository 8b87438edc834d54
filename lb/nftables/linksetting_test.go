package nftables

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// settingOf reads one of a link.
func settingOf(t testing.TB, link, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv4/conf/" + link + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func change(t testing.TB, link, name, to string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+link+"/"+name, []byte(to), 0o644); err != nil {
		t.Fatal(err)
	}
}

// unsettled gives the links to nodes the settings of a fresh machine.
func unsettled(r *directRig) {
	for _, link := range []string{"d1", "d2"} {
		change(r, link, "accept_local", "0")
		change(r, link, "rp_filter", "1")
	}
}

// linksNow are those of the links to nodes.
func linksNow(r *directRig) string {
	var all []string
	for _, link := range []string{"d1", "d2"} {
		all = append(all, settingOf(r, link, "accept_local")+settingOf(r, link, "rp_filter"))
	}
	return strings.Join(all, " ")
}

// steeringReadOnly: where the program may not change settings, it says which it needs,
// and all else is served.
func steeringReadOnly(r *directRig) {
	if r.family == lb.IPv6 {
		return // there are no such settings
	}
	unsettled(r)
	direct, other := r.add(lb.TCP), r.viaNodePort()
	type result struct {
		refused map[lb.Frontend]error
		err     error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and the thread ends with this function
		var res result
		defer func() { done <- res }()
		for _, step := range []func() error{
			func() error { return unix.Unshare(unix.CLONE_NEWNS) },
			func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") },
			func() error { return unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, "") },
			func() error {
				return unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
			},
		} {
			if res.err = step(); res.err != nil {
				return
			}
		}
		res.refused, res.err = r.engine.Set(r.Context(), r.table)
	}()
	res := <-done
	if res.err != nil {
		r.Fatalf("Set: %v", res.err)
	}
	if err := res.refused[direct]; !errors.Is(err, lb.ErrUnsupported) || !strings.Contains(err.Error(), "/conf/d1/accept_local") {
		r.Errorf("where settings cannot be changed: got %v; want it refused, and the setting named", err)
	}
	r.mustServe(other)
	if rules := r.ip("rule"); !strings.HasPrefix(rules, "0:\tfrom all lookup local") {
		r.Errorf("ip rules:\n%s\nwant them left alone", rules)
	}
}

// steeringPutsBack: settings of links are as they were when nothing needs them, also
// if another process has changed them, and after the cleanup.
func steeringPutsBack(r *directRig) {
	if r.family == lb.IPv6 {
		return // there are no such settings
	}
	unsettled(r)
	serve := func() lb.Frontend {
		f := r.add(lb.TCP)
		r.change(f, func(route *lb.Route) { route.DrainTimeout = 0 })
		r.mustSet()
		r.mustAsk(r.dial(f))
		if now := linksNow(r); now != "12 12" {
			r.Errorf("accept_local and rp_filter of the links: got %s; want 12 of both", now)
		}
		return f
	}
	f := serve()
	r.begin()
	r.mustSet()
	delete(r.table.Routes, f)
	r.mustSet()
	r.eventually("settings are put back", func() bool { return linksNow(r) == "01 01" })
	r.eventually("ip rules are put back", func() bool { return strings.HasPrefix(r.ip("rule"), "0:\tfrom all lookup local") })

	serve()
	change(r, "d2", "rp_filter", "0")
	if err := r.engine.Shutdown(r.Context()); err != nil {
		r.Fatal(err)
	}
	if _, err := Cleanup(r.engine.log); err != nil {
		r.Fatal(err)
	}
	if now := linksNow(r); now != "01 00" {
		r.Errorf("accept_local and rp_filter after the cleanup: got %s; want 01 00, one of which somebody else has changed", now)
	}
}

// steeringKeepsSettings: settings are left alone if that is configured, and beside
// kube-proxy.
func steeringKeepsSettings(r *directRig) {
	if r.family == lb.IPv6 {
		return // there are no such settings
	}
	for _, beside := range []bool{false, true} {
		unsettled(r)
		r.begin()
		if beside {
			listing(r, "nft", "add table ip nat2; add chain ip nat2 KUBE-SERVICES")
			defer listing(r, "nft", "delete table ip nat2")
		} else {
			r.engine = New(Options{Log: zaptest.NewLogger(r), Direct: true, KeepSysctls: true})
		}
		r.add(lb.TCP)
		r.mustSet()
		if now := linksNow(r); now != "01 01" {
			r.Errorf("accept_local and rp_filter, beside kube-proxy %v: got %s; want 01 01 as before", beside, now)
		}
	}
}
