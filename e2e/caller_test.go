package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/eclusa-lb/eclusa/lab"
)

// A caller is somebody who connects: from a host or a pod, with an address of its
// choice if it has several.
type caller struct {
	host *lab.Host
	from netip.Addr
}

// A direction is where a caller stands.
type direction struct {
	name string
	of   func(*stage) caller
}

var (
	fromOutside = direction{"from outside", func(s *stage) caller { return caller{host: s.client} }}
	fromPod     = direction{"from a pod", func(s *stage) caller { return caller{host: s.inside} }}
)

// both makes an entry for each direction.
func both(e entry, run func(*testing.T, *stage, caller)) []entry {
	var all []entry
	for _, d := range []direction{fromOutside, fromPod} {
		one := e
		one.name += " " + d.name
		one.run = func(t *testing.T, s *stage) { run(t, s, d.of(s)) }
		all = append(all, one)
	}
	return all
}

func (c caller) dial(ctx context.Context, network string, at netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	if c.from.IsValid() {
		if network == "udp" {
			d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
		} else {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.from, 0))
		}
	}
	return c.host.DialWith(ctx, &d, network, at.String())
}

// get fetches a text over HTTP through a connection of its own.
func (c caller) get(ctx context.Context, at netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+at.String()+"/", nil)
	if err != nil {
		return "", err
	}
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return c.dial(ctx, network, at)
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return string(body), err
}

var echoed = regexp.MustCompile(`^(\S+) on (\S+), you are (\S+): (.*)$`)

// ask asks the workload over the protocol, tcp or udp, who it is.
func (c caller) ask(ctx context.Context, network string, at netip.AddrPort) (answer, error) {
	text, pattern := "", hello
	var err error
	if network == "udp" {
		pattern = echoed
		text, err = c.datagram(ctx, at)
	} else {
		text, err = c.get(ctx, at)
	}
	if err != nil {
		return answer{}, err
	}
	m := pattern.FindStringSubmatch(text)
	if m == nil {
		return answer{}, fmt.Errorf("%s %s: %q is no greeting", network, at, text)
	}
	return answer{pod: m[1], node: m[2], client: m[3]}, nil
}

func (c caller) datagram(ctx context.Context, at netip.AddrPort) (string, error) {
	conn, err := c.dial(ctx, "udp", at)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return exchange(conn, "question", 500*time.Millisecond)
}

// exchange sends a datagram and returns what comes back.
func exchange(conn net.Conn, text string, limit time.Duration) (string, error) {
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	buf := make([]byte, 2048)
	n, err := conn.Read(buf)
	return string(buf[:n]), err
}

// answers waits until the address answers over the protocol, and returns who did.
func (c caller) answers(t *testing.T, network string, at netip.AddrPort) answer {
	t.Helper()
	var a answer
	eventually(t, 15*time.Second, func() (err error) {
		if a, err = c.ask(t.Context(), network, at); err != nil {
			err = fmt.Errorf("%s %s from %s: %w", network, at, c, err)
		}
		return err
	})
	return a
}

// refused waits until the address refuses over the protocol: with a packet that
// says so, and at once.
func (c caller) refused(t *testing.T, network string, at netip.AddrPort) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		begun := time.Now()
		a, err := c.ask(t.Context(), network, at)
		took := time.Since(begun)
		switch {
		case err == nil:
			return fmt.Errorf("%s %s is answered by %s, want it refused", network, at, a.pod)
		case !errors.Is(err, syscall.ECONNREFUSED):
			return fmt.Errorf("%s %s fails with %w, want it refused", network, at, err)
		case took > 300*time.Millisecond:
			return fmt.Errorf("%s %s is refused after %s, want that at once", network, at, took)
		}
		return nil
	})
}

// shutOut waits until nothing comes back over the protocol; over TCP it must not
// hang either.
func (c caller) shutOut(t *testing.T, network string, at netip.AddrPort) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		a, err := c.ask(t.Context(), network, at)
		if err == nil {
			return fmt.Errorf("%s %s answers %s as %q, want it shut out", network, at, c, a.client)
		}
		if network == "tcp" && errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("%s %s hangs for %s, want an error at once", network, at, c)
		}
		return nil
	})
}

// unanswered waits until nothing comes back over the protocol: where an address is
// on no machine any more, that takes the network its time.
func (c caller) unanswered(t *testing.T, network string, at netip.AddrPort) {
	t.Helper()
	eventually(t, 10*time.Second, func() error {
		a, err := c.ask(t.Context(), network, at)
		if err == nil {
			return fmt.Errorf("%s %s still answers %s: %s", network, at, c, a.pod)
		}
		return nil
	})
}

func (c caller) String() string {
	if c.from.IsValid() {
		return c.host.Name + " as " + c.from.String()
	}
	return c.host.Name
}

// guests are the addresses that the client outside has besides its own, so that it
// is many clients: as many of each family.
const guestCount = 32

func guest(i int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, byte(100 + i)}) }

func guest6(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:31::%d", 100+i))
}

// guests gives the client outside its other addresses, which nobody uses who is not
// told to.
func (c *cluster) guests(t *testing.T) {
	t.Helper()
	script := ""
	for i := range guestCount {
		script += fmt.Sprintf("addr replace %s/24 dev eth0\naddr replace %s/64 dev eth0 nodad preferred_lft 0\n", guest(i), guest6(i))
	}
	cmd := c.client.Command(t.Context(), "sh", "-c", "printf '%s' '"+script+"' | ip -batch -")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("more addresses for %s: %v\n%s", c.client.Name, err, out)
	}
}

// podOn returns the network of a running pod labelled app=NAME on the node.
func (c *cluster) podOn(t *testing.T, ns, name string, node *lab.Node) *lab.Host {
	t.Helper()
	pods, err := c.kube.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.Spec.NodeName != node.Name || p.DeletionTimestamp != nil {
			continue
		}
		h, err := c.Pod(t.Context(), ns, p.Name)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	t.Fatalf("no pod %q on %s among %d", name, node.Name, len(pods.Items))
	return nil
}

// port reads a port of a Service, written as NAME PORT/PROTOCOL TARGET.
func port(text string) corev1.ServicePort {
	var name, protocol, target string
	var number int32
	if _, err := fmt.Sscanf(text, "%s %d/%s %s", &name, &number, &protocol, &target); err != nil {
		panic(fmt.Sprintf("port %q: %v", text, err))
	}
	return corev1.ServicePort{Name: name, Protocol: corev1.Protocol(protocol), Port: number, TargetPort: intstr.Parse(target)}
}

// cleanup is a context for what must be done after a test has ended.
func cleanup(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }
