package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

// The release is upgraded and uninstalled with a version of Helm, and installed
// again with the other, each taking over what the other has left; and the same the
// other way round. Traffic goes on all the time, and every Service keeps its address.
func TestReleaseIsReplaced(t *testing.T) {
	c := inLab(t)
	ns := c.namespace(t)
	c.deploy(t, ns, "web", 2)
	before := map[string]netip.Addr{}
	for name, class := range map[string]*string{"stock": nil, "class": ptr("eclusa.io/edge")} {
		s := lab.Service(ns, name)
		s.Spec.Selector = map[string]string{"app": "web"}
		s.Spec.LoadBalancerClass = class
		before[name] = c.serve(t, s)[0]
	}
	for _, a := range before {
		answers(t, c.client, netip.AddrPortFrom(a, 80))
	}
	load := startLoad(t.Context(), c.client, netip.AddrPortFrom(before["stock"], 80), 50)
	helms := c.helms(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if !t.Failed() {
			return // it was installed last as it was in the beginning
		}
		if err := c.helm(ctx, helms["helm4"], "upgrade", "--install", lab.Release, "../charts/eclusa", "--values", c.Values()); err != nil {
			t.Error(err)
		}
		c.ensureCCM(t)
	})
	for _, versions := range [][2]string{{"helm4", "helm3"}, {"helm3", "helm4"}} {
		c.replaceRelease(t, ns, before, helms, versions[0], versions[1])
	}
	load.stop(t)
}

func (c *cluster) replaceRelease(t *testing.T, ns string, before map[string]netip.Addr, helms map[string]string, now, next string) {
	t.Helper()
	begun := time.Now()
	c.upgrade(t, helms[now])
	t.Logf("upgraded with %s in %s", now, time.Since(begun).Round(time.Millisecond))
	begun = time.Now()
	c.uninstall(t, helms[now])
	t.Logf("uninstalled with %s in %s", now, time.Since(begun).Round(time.Millisecond))
	c.sameAddresses(t, ns, before)
	for _, a := range before {
		if _, err := get(t.Context(), c.client, netip.AddrPortFrom(a, 80)); err != nil {
			t.Errorf("after the uninstallation with %s: %v", now, err)
		}
	}
	begun = time.Now()
	if err := c.helm(t.Context(), helms[next], "install", lab.Release, "../charts/eclusa", "--values", c.Values()); err != nil {
		t.Fatal(err)
	}
	c.ensureCCM(t)
	t.Logf("a manager leads %s after the installation with %s was begun", time.Since(begun).Round(time.Millisecond), next)
	fresh := lab.Service(ns, "after-"+now)
	fresh.Spec.Selector = map[string]string{"app": "web"}
	before[fresh.Name] = c.serve(t, fresh)[0]
	answers(t, c.client, netip.AddrPortFrom(before[fresh.Name], 80))
	c.sameAddresses(t, ns, before)
}

// upgrade changes flags of the managers, so that their pods are replaced. (A
// shorter Lease also spares the test some waiting: an uninstallation takes away
// the right to give it back before the pods end.)
func (c *cluster) upgrade(t *testing.T, helm string) {
	t.Helper()
	err := c.helm(t.Context(), helm, "upgrade", lab.Release, "../charts/eclusa", "--values", c.Values(),
		"--set", "controllerManager.extraArgs={--leader-elect-lease-duration=5s,--leader-elect-renew-deadline=3s,--leader-elect-retry-period=1s}")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WaitDeployment(t.Context(), lab.ReleaseNamespace, lab.ManagerName); err != nil {
		t.Fatal(err)
	}
	c.ensureCCM(t)
	lease, err := c.kube.CoordinationV1().Leases(lab.ReleaseNamespace).Get(t.Context(), lab.ManagerName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := lease.Spec.LeaseDurationSeconds; got == nil || *got != 5 {
		t.Errorf("after the upgrade the Lease lasts %v seconds, want 5: nobody of the new version leads", got)
	}
}

// uninstall waits until nothing of the release runs, and looks at what must stay.
func (c *cluster) uninstall(t *testing.T, helm string) {
	t.Helper()
	if err := c.helm(t.Context(), helm, "uninstall", lab.Release); err != nil {
		t.Fatal(err)
	}
	eventually(t, 30*time.Second, func() error {
		pods, err := c.kube.CoreV1().Pods(lab.ReleaseNamespace).List(t.Context(), metav1.ListOptions{})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("pod %q is still there", pods.Items[0].Name)
		}
		return err
	})
	for _, o := range []string{"edge/" + c.edge.Name, "addresspool/default"} {
		if got := strings.TrimSpace(c.kubectl(t.Context(), "get", o, "-o", "jsonpath={.metadata.deletionTimestamp}")); got != "" {
			t.Errorf("%s after the uninstallation: %s", o, got)
		}
	}
}

// helms are the versions of Helm by name.
func (c *cluster) helms(t *testing.T) map[string]string {
	t.Helper()
	dir, err := lab.BuildHelm(t.Context(), os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, name := range []string{"helm3", "helm4"} {
		all[name] = filepath.Join(dir, name)
	}
	return all
}

// helm runs a version of Helm as an administrator on the control plane does.
func (c *cluster) helm(ctx context.Context, program string, args ...string) error {
	args = append([]string{program, "--kubeconfig", c.Kubeconfig(), "--namespace", lab.ReleaseNamespace}, args...)
	cmd := c.ControlPlane.Command(ctx, args...)
	home, err := os.MkdirTemp("", "e2e-helm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(home)
	cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", filepath.Base(program), args[5], err, out)
	}
	return nil
}
