package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/eclusa-lb/eclusa/lab"
)

func demoCommand() *cobra.Command {
	var o lab.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "Bring a lab up, show what eclusa does, take it down",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			d := &demo{out: c.OutOrStdout(), start: time.Now()}
			o.Log = d.out
			return d.run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.IntVar(&o.Edges, "edges", 1, "number of edges")
	f.StringVar(&o.LogDir, "log-dir", "", "where to keep the logs of all programs (default: nowhere)")
	return c
}

// demo tells a story on a lab of its own.
type demo struct {
	out   io.Writer
	start time.Time
	lab   *lab.Lab
}

func (d *demo) run(ctx context.Context, o lab.Options) (err error) {
	d.title("A Kubernetes cluster: a control plane, two nodes, an edge in front of them, and a client outside; and Helm installs eclusa")
	d.lab, err = lab.Up(ctx, o)
	if err != nil {
		return err
	}
	defer func() {
		d.title("Taking everything down")
		err = errors.Join(err, d.lab.Down())
	}()
	steps := []func(context.Context) error{d.installed, d.deploy, d.expose, d.killNode}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.next()
	return nil
}

// installed shows what helm install has brought into the cluster.
func (d *demo) installed(ctx context.Context) error {
	d.title("What helm install has brought: two managers of which one leads, the addresses that there are to give, the edge that serves them")
	if err := d.command(ctx, d.lab.Helm(), "helm", "list", "--namespace", lab.ReleaseNamespace); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"get", "pods", "--namespace", lab.ReleaseNamespace, "-o", "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,IMAGE:.spec.containers[0].image"},
		{"get", "edges"}, {"get", "addresspools"},
	} {
		if err := d.kubectl(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// deploy starts the application.
func (d *demo) deploy(ctx context.Context) error {
	d.title("An application: four pods on two nodes")
	if err := d.lab.Deploy(ctx, lab.Deployment("default", "web", 4)); err != nil {
		return err
	}
	d.say("four pods answer HTTP on port 8080, at addresses that only the nodes know")
	return d.kubectl(ctx, "get", "pods", "-o", "custom-columns=POD:.metadata.name,NODE:.spec.nodeName,ADDRESS:.status.podIP,PHASE:.status.phase")
}

// expose creates the Service and asks it from outside until it answers.
func (d *demo) expose(ctx context.Context) error {
	d.title("A Service of type LoadBalancer")
	clients, err := d.lab.Clientset()
	if err != nil {
		return err
	}
	s := lab.Service("default", "web")
	// Each node answers with its own pods, so that a dead node takes no
	// request with it that another node has accepted.
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	created := time.Now()
	s, err = clients.CoreV1().Services("default").Create(ctx, s, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	d.say("created; without a load balancer it would stay like this, with a node port for clients to guess:")
	d.service(s)
	addrs, err := d.lab.WaitAddress(ctx, "default", "web")
	if err != nil {
		return err
	}
	got := time.Since(created)
	answer, err := d.fetch(ctx, addrs[0])
	if err != nil {
		return err
	}
	d.say("%.2f s later it has an address of its own, and after %.2f s a client outside has its answer:", got.Seconds(), time.Since(created).Seconds())
	if err := d.kubectl(ctx, "get", "service", "web"); err != nil {
		return err
	}
	d.print(fmt.Sprintf("client-1 (%s)$ curl http://%s/\n%s", d.lab.Client().Addr4, addrs[0], answer))
	d.say("port 80 outside, node port %d at the nodes, port 8080 in the pod", lab.NodePort(s, 80))
	return nil
}

// service shows a Service as kubectl would have at that moment.
func (d *demo) service(s *corev1.Service) {
	port := s.Spec.Ports[0]
	d.print(fmt.Sprintf("NAME   TYPE           EXTERNAL-IP   PORT(S)\n%-6s %-14s %-13s %d:%d/TCP\n", s.Name, s.Spec.Type, "<pending>", port.Port, port.NodePort))
}

// fetch asks from outside until there is an answer.
func (d *demo) fetch(ctx context.Context, addr netip.Addr) (string, error) {
	client := d.lab.Client().HTTPClient()
	client.Timeout = time.Second
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		answer, err := get(ctx, client, "http://"+netip.AddrPortFrom(addr, 80).String()+"/")
		if err == nil {
			return answer, nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("no answer from %s: %w", addr, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	return string(body), err
}

// killNode lets a node die silently under load, and brings it back.
func (d *demo) killNode(ctx context.Context) error {
	d.title("A node dies while 200 clients a second connect")
	addrs, err := d.lab.WaitAddress(ctx, "default", "web")
	if err != nil {
		return err
	}
	traffic := &lab.Traffic{From: d.lab.Client(), URL: fmt.Sprintf("http://%s/", netip.AddrPortFrom(addrs[0], 80))}
	going, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan lab.Report, 1)
	go func() { ended <- traffic.Run(going) }()
	victim, err := d.victim(ctx)
	if err != nil {
		return err
	}
	if err := d.sleep(ctx, 3*time.Second); err != nil {
		return err
	}
	d.report(traffic.Report())
	if err := victim.LinkDown(); err != nil {
		return err
	}
	died := time.Now()
	d.say("%s is cut off: no goodbye, its packets just vanish", victim.Name)
	if err := d.sleep(ctx, 6*time.Second); err != nil {
		return err
	}
	r := traffic.Report()
	d.report(r)
	d.say("%s gave its last answer %.2f s after its death; what Kubernetes knows of it by now, and what eclusa knows:",
		victim.Name, max(0, r.Last[victim.Name].Sub(died).Seconds()))
	if err := d.kubectl(ctx, "get", "nodes"); err != nil {
		return err
	}
	if err := d.kubectl(ctx, "get", "edges"); err != nil {
		return err
	}
	before := r.Nodes[victim.Name]
	if err := victim.LinkUp(); err != nil {
		return err
	}
	back := time.Now()
	for traffic.Report().Nodes[victim.Name] == before && time.Since(back) < 30*time.Second {
		if err := d.sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	d.say("%s is connected again, and answers after %.2f s", victim.Name, time.Since(back).Seconds())
	if err := d.sleep(ctx, 2*time.Second); err != nil {
		return err
	}
	stop()
	r = <-ended
	d.report(r)
	for _, e := range r.Errors {
		d.print(e + "\n")
	}
	return nil
}

// victim is a node on which the manager does not lead: edges do not need it, but
// it is to tell what they know.
func (d *demo) victim(ctx context.Context) (*lab.Node, error) {
	leader, err := d.lab.Manager.Leader(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range d.lab.Nodes {
		if n.Host != leader.Host {
			d.say("the manager leads on %s, so %s it is: with the leader dead the edge would do the same, but nobody would tell us before the other manager leads, 15 s later", leader.Host.Name, n.Name)
			return n, nil
		}
	}
	return nil, errors.New("the lab has one node alone")
}

func (d *demo) report(r lab.Report) {
	var nodes []string
	for _, n := range d.lab.Nodes {
		nodes = append(nodes, fmt.Sprintf("%s %d", n.Name, r.Nodes[n.Name]))
	}
	d.say("%d requests, %d failed, slowest answer %d ms (%s)", r.Requests, r.Failures, r.Slowest.Milliseconds(), strings.Join(nodes, ", "))
}

func (d *demo) next() {
	d.title("What to try next")
	d.print(`make up      the same cluster, left running, with kubectl and helm for your shell
             then stop the control plane, kill an edge, drain a node, and keep asking from outside
make down    take it down
make test    see all of that done by tests
docs/        quickstart, architecture
`)
}

// kubectl shows what a user would type and see.
func (d *demo) kubectl(ctx context.Context, args ...string) error {
	return d.command(ctx, d.lab.Kubectl(), append([]string{"kubectl"}, args...)...)
}

// command runs a script of the lab under the name that it has for users.
func (d *demo) command(ctx context.Context, script string, args ...string) error {
	line := strings.Join(args, " ")
	out, err := exec.CommandContext(ctx, script, args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", line, err, out)
	}
	d.print("$ " + line + "\n" + string(out))
	return nil
}

func (d *demo) title(text string) { _, _ = fmt.Fprintf(d.out, "\n== %s\n", text) }

func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

// print shows output of a program, indented.
func (d *demo) print(text string) {
	for line := range strings.Lines(text) {
		_, _ = fmt.Fprintf(d.out, "         | %s\n", strings.TrimRight(line, "\n"))
	}
}

func (d *demo) sleep(ctx context.Context, t time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(t):
		return nil
	}
}
