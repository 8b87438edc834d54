package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

// managerPort is the secure port of the manager, managerLoopback where it listens
// when it runs without a pod.
const managerPort = 10258

var managerLoopback = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), managerPort)

// managerPods finds the pods of the Deployment.
const managerPods = "app.kubernetes.io/name=eclusa,app.kubernetes.io/component=controller-manager"

// Replica is one running process of the manager.
type Replica struct {
	// Name is that of its pod, or of its process.
	Name string
	// Host is where it runs.
	Host *Host
	// Address is where its metrics are, for requests from the control plane.
	Address netip.AddrPort

	host    string // as it knows it: the beginning of its name in the Lease
	run     ledger.Process
	started time.Time
	log     func() (string, error)
}

// want tells Kubernetes how many replicas there shall be.
func (m *Manager) want(ctx context.Context, n int) error {
	clients, err := m.lab.Clientset()
	if err != nil {
		return err
	}
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, n)
	_, err = clients.AppsV1().Deployments(ReleaseNamespace).Patch(ctx, ManagerName, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "scale")
	return err
}

func (m *Manager) pods(ctx context.Context) ([]corev1.Pod, error) {
	clients, err := m.lab.Clientset()
	if err != nil {
		return nil, err
	}
	list, err := clients.CoreV1().Pods(ReleaseNamespace).List(ctx, metav1.ListOptions{LabelSelector: managerPods})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// settled waits until n replicas run, and no pod is coming or going.
func (m *Manager) settled(ctx context.Context, n int) error {
	err := until(ctx, time.Minute, func(ctx context.Context) error {
		pods, err := m.pods(ctx)
		if err != nil {
			return err
		}
		replicas, err := m.Replicas(ctx)
		if err == nil && (len(replicas) != n || len(pods) != n) {
			err = fmt.Errorf("%s run, want %d: %s", count(len(replicas), "replica", "replicas"), n, describePods(pods))
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", ManagerName, err)
	}
	return nil
}

// condemned waits until the end of every pod has been asked for.
func (m *Manager) condemned(ctx context.Context) error {
	return until(ctx, 20*time.Second, func(ctx context.Context) error {
		pods, err := m.pods(ctx)
		if err != nil {
			return err
		}
		for _, p := range pods {
			if p.DeletionTimestamp == nil {
				return fmt.Errorf("pod %q is not asked to end yet", p.Name)
			}
		}
		return nil
	})
}

// describePods says how pods are that are not as they should be.
func describePods(pods []corev1.Pod) string {
	if len(pods) == 0 {
		return "there are no pods"
	}
	var all []string
	for _, p := range pods {
		text := fmt.Sprintf("pod %q on %q is %s", p.Name, p.Spec.NodeName, p.Status.Phase)
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status != corev1.ConditionTrue {
				text += ", " + c.Message
			}
		}
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil {
				text += fmt.Sprintf(", waits: %s %s", w.Reason, w.Message)
			}
			if e := c.LastTerminationState.Terminated; e != nil {
				text += fmt.Sprintf(", has ended with %d", e.ExitCode)
			}
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

// podReplicas finds the processes of the pods, which the machine sees like any
// other.
func (m *Manager) podReplicas(ctx context.Context) ([]*Replica, error) {
	pods, err := m.pods(ctx)
	if err != nil {
		return nil, err
	}
	var replicas []*Replica
	for _, p := range pods {
		host := m.lab.Host(p.Spec.NodeName)
		if p.DeletionTimestamp != nil || host == nil || len(p.Status.ContainerStatuses) == 0 {
			continue
		}
		c := p.Status.ContainerStatuses[0]
		if c.State.Running == nil {
			continue
		}
		run, err := inContainer(c.ContainerID)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it has ended, and its kubelet has not said so yet
		}
		if err != nil {
			return nil, err
		}
		addr, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil {
			return nil, fmt.Errorf("pod %q: %w", p.Name, err)
		}
		logs := m.lab.path("host", host.Name, "var", "log", "pods",
			fmt.Sprintf("%s_%s_%s", p.Namespace, p.Name, p.UID), c.Name, "*.log")
		replicas = append(replicas, &Replica{
			Name: p.Name, Host: host, Address: netip.AddrPortFrom(addr, managerPort),
			host: p.Name, run: run, started: c.State.Running.StartedAt.Time,
			log: func() (string, error) { return readLogs(logs) },
		})
	}
	return replicas, nil
}

// inContainer finds the process of a container, such as containerd://ID, by the
// control group that is named after it; fs.ErrNotExist if there is none.
func inContainer(name string) (ledger.Process, error) {
	_, id, ok := strings.Cut(name, "://")
	if !ok || id == "" {
		return ledger.Process{}, fmt.Errorf("container %q: want a name such as containerd://ID", name)
	}
	groups, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		return ledger.Process{}, err
	}
	for _, file := range groups {
		data, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(data), id) {
			continue // or it has just ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			return ledger.Process{}, err
		}
		if p, err := ledger.Find(pid); err == nil && p.Running() {
			return p, nil
		}
	}
	return ledger.Process{}, fmt.Errorf("process of container %q: %w", name, fs.ErrNotExist)
}

// readLogs joins the files that match, in the order of their names.
func readLogs(pattern string) (string, error) {
	files, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		b.Write(data)
	}
	return b.String(), nil
}
