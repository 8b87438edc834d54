package lab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ManagerReplicas is how many managers the chart runs unless told otherwise.
const ManagerReplicas = 2

// Manager is eclusa-cloud-controller-manager as the chart installs it: pods of a
// Deployment. In a lab without nodes it is one process on the control plane's
// host instead, with the same ServiceAccount.
type Manager struct {
	lab *Lab
	// process is there in a lab without nodes, and started says when.
	process *Process
	started time.Time
}

// inPods reports whether kubelets run it.
func (m *Manager) inPods() bool { return len(m.lab.Nodes) > 0 }

// Start brings the manager to the number of replicas that it usually has.
func (m *Manager) Start(ctx context.Context) error {
	if !m.inPods() {
		return m.Scale(ctx, 1)
	}
	return m.Scale(ctx, ManagerReplicas)
}

// Stop asks all replicas to end, and waits until they have. The last thing that
// the leader does is to give its Lease back.
func (m *Manager) Stop(ctx context.Context) error { return m.Scale(ctx, 0) }

// Scale makes it n replicas and waits until so many run. Whether one of them
// leads is for [Manager.Leader] to say.
func (m *Manager) Scale(ctx context.Context, n int) error {
	if !m.inPods() {
		return m.scaleProcess(ctx, n)
	}
	if err := m.want(ctx, n); err != nil {
		return err
	}
	return m.settled(ctx, n)
}

// Kill ends all replicas at once, without a goodbye: the Lease stays taken until
// it expires. None is started again before Start or Scale.
func (m *Manager) Kill(ctx context.Context) error {
	if !m.inPods() {
		if m.process == nil {
			return nil
		}
		return m.process.Kill()
	}
	replicas, err := m.Replicas(ctx)
	if err != nil {
		return err
	}
	// Frozen, they do not hear that they are to end.
	for _, r := range replicas {
		if err := r.Freeze(); err != nil {
			return err
		}
	}
	if err := m.want(ctx, 0); err != nil {
		return err
	}
	// kubelets start again what ends before they know that it is to end.
	if err := m.condemned(ctx); err != nil {
		return err
	}
	for _, r := range replicas {
		if err := r.Kill(); err != nil {
			return err
		}
	}
	return m.settled(ctx, 0)
}

// Leader waits, a minute at most, until a running replica holds the Lease, and
// returns it. One that is frozen leads until its Lease has expired.
func (m *Manager) Leader(ctx context.Context) (*Replica, error) {
	var leader *Replica
	err := until(ctx, time.Minute, func(ctx context.Context) (err error) {
		leader, err = m.leader(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("leader of %s: %w", ManagerName, err)
	}
	return leader, nil
}

func (m *Manager) leader(ctx context.Context) (*Replica, error) {
	clients, err := m.lab.Clientset()
	if err != nil {
		return nil, err
	}
	lease, err := clients.CoordinationV1().Leases(ReleaseNamespace).Get(ctx, ManagerName, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	host, since, err := holder(lease.Spec, time.Now())
	if err != nil {
		return nil, err
	}
	replicas, err := m.Replicas(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range replicas {
		// A younger process of that host has another identity.
		if r.host == host && r.Running() && !r.started.After(since) {
			return r, nil
		}
	}
	return nil, fmt.Errorf("the manager on %q, which has the Lease, does not run", host)
}

// holder says on which host the manager runs that has the Lease, and since when
// it has it.
func holder(s coordinationv1.LeaseSpec, now time.Time) (host string, since time.Time, err error) {
	if s.HolderIdentity == nil || *s.HolderIdentity == "" || s.RenewTime == nil || s.AcquireTime == nil || s.LeaseDurationSeconds == nil {
		return "", time.Time{}, errors.New("nobody has the Lease")
	}
	if end := s.RenewTime.Add(time.Duration(*s.LeaseDurationSeconds) * time.Second); now.After(end) {
		return "", time.Time{}, fmt.Errorf("the Lease of %q has expired", *s.HolderIdentity)
	}
	host, _, _ = strings.Cut(*s.HolderIdentity, "_")
	return host, s.AcquireTime.Time, nil
}

// Replicas are those that run, and whose end nobody has asked for.
func (m *Manager) Replicas(ctx context.Context) ([]*Replica, error) {
	if m.inPods() {
		return m.podReplicas(ctx)
	}
	p := m.process
	if p == nil || !p.Running() {
		return nil, nil
	}
	return []*Replica{{
		Name: p.Name, Host: p.Host, Address: managerLoopback, host: p.Host.Name, run: p.current(), started: m.started,
		log: func() (string, error) { return readLogs(p.LogPath()) },
	}}, nil
}

// startProcess starts the one process of a lab without nodes.
func (m *Manager) startProcess(ctx context.Context) error {
	l := m.lab
	config, err := l.accountKubeconfig(ctx)
	if err != nil {
		return err
	}
	file := l.path("eclusa", "cloud.yaml")
	if err := l.writeTemplate(file, ccmTemplate, nil); err != nil {
		return err
	}
	m.process = l.process(ccmRole, "manager", l.ControlPlane.Host, append([]string{l.bin(ccmProgram),
		"--cloud-provider=eclusa",
		"--cloud-config=" + file,
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--leader-elect-resource-namespace=" + ReleaseNamespace,
		"--bind-address=" + managerLoopback.Addr().String(),
		fmt.Sprintf("--secure-port=%d", managerLoopback.Port()),
		"--cert-dir=" + l.path("eclusa", "manager"),
	}, l.Options.leaseFlags()...)...)
	return m.Scale(ctx, 1)
}

func (m *Manager) scaleProcess(ctx context.Context, n int) error {
	switch {
	case m.process == nil:
		return fmt.Errorf("%s: is not in this lab", ManagerName)
	case n == 0:
		return m.process.Stop(ctx)
	case n == 1:
		m.started = time.Now()
		return m.process.Start()
	}
	return fmt.Errorf("%s: %d replicas: a lab without nodes runs one at most", ManagerName, n)
}

// Freeze stops the replica where it stands (SIGSTOP): its connections stay open
// and nothing answers.
func (r *Replica) Freeze() error { return r.signal(unix.SIGSTOP) }

// Thaw lets a frozen replica go on.
func (r *Replica) Thaw() error { return r.signal(unix.SIGCONT) }

// Kill ends the replica at once (SIGKILL). Its kubelet starts another in its
// place.
func (r *Replica) Kill() error { return kill(r.run) }

// Running reports whether this very process is there.
func (r *Replica) Running() bool { return r.run.Running() }

// PID is its number, as seen from outside the lab.
func (r *Replica) PID() int { return r.run.PID }

// RSS is its memory in bytes.
func (r *Replica) RSS() (int64, error) { return rss(r.run.PID) }

// Log is what it has logged, and what those before it in the same pod have.
func (r *Replica) Log() (string, error) { return r.log() }

func (r *Replica) signal(s unix.Signal) error {
	if !r.Running() {
		return fmt.Errorf("signal %q: it does not run", r.Name)
	}
	if err := unix.Kill(r.run.PID, s); err != nil {
		return fmt.Errorf("signal %q: %w", r.Name, err)
	}
	return nil
}
