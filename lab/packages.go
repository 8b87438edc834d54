package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// needed are the programs that the machine must have, and the Debian packages
// that they come in.
var needed = []struct{ program, pkg string }{
	{"containerd", "containerd"},
	{"containerd-shim-runc-v2", "containerd"},
	{"ctr", "containerd"},
	{"runc", "runc"},
	{"nft", "nftables"},
	{"iptables", "iptables"},
	{"conntrack", "conntrack"},
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
}

// privileged reports why this process cannot run a lab.
func privileged() error {
	if os.Geteuid() != 0 {
		return errors.New("the lab needs root: it makes network namespaces, mounts and control groups")
	}
	return nil
}

// absent lists the packages, each once, whose programs find does not know.
func absent(find func(program string) bool) []string {
	var pkgs []string
	for _, n := range needed {
		if !find(n.program) && !slices.Contains(pkgs, n.pkg) {
			pkgs = append(pkgs, n.pkg)
		}
	}
	return pkgs
}

func installed(program string) bool {
	if _, err := exec.LookPath(program); err == nil {
		return true
	}
	// Not everybody's PATH has the system programs.
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if _, err := os.Stat(dir + program); err == nil {
			return true
		}
	}
	return false
}

// installPackages installs the Debian packages that are missing.
func installPackages(ctx context.Context, n *narrator) error {
	pkgs := absent(installed)
	if len(pkgs) == 0 {
		return nil
	}
	list := strings.Join(pkgs, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("these programs are missing and apt-get is not here to install them: %s", list)
	}
	n.say("installing Debian packages: %s", list)
	quiet, err := noServices(pkgs)
	if err != nil {
		return err
	}
	defer quiet()
	install := append([]string{"install", "-y", "-q", "--no-install-recommends"}, pkgs...)
	if err := aptGet(ctx, install...); err != nil {
		// Fresh machines have no package lists, old ones outdated lists.
		if err := aptGet(ctx, "update", "-q"); err != nil {
			return err
		}
		if err := aptGet(ctx, install...); err != nil {
			return err
		}
	}
	if still := absent(installed); len(still) > 0 {
		return fmt.Errorf("packages %s: installed, but their programs are not found", strings.Join(still, " "))
	}
	n.say("installed: %s", list)
	return nil
}

func aptGet(ctx context.Context, args ...string) error {
	args = append([]string{"-o", "DPkg::Lock::Timeout=300"}, args...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", strings.Join(args[2:], " "), err, out[max(0, len(out)-2000):])
	}
	return nil
}

// noServices keeps Debian from starting services with the packages: each node
// of a lab has a containerd of its own and wants none beside it. The returned
// function allows services again and keeps containerd from starting at boot.
func noServices(pkgs []string) (restore func(), err error) {
	const policy = "/usr/sbin/policy-rc.d"
	f, err := os.OpenFile(policy, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return func() {}, nil // somebody has a policy already
	}
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString("#!/bin/sh\nexit 101\n")
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, os.Remove(policy))
	}
	return func() {
		_ = os.Remove(policy)
		if slices.Contains(pkgs, "containerd") {
			// No systemd, no service.
			_ = exec.Command("systemctl", "disable", "--now", "containerd").Run()
		}
	}, nil
}
