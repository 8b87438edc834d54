package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/eclusa-lb/eclusa/lab/ledger"
)

const stateFile = "lab.json"

// state is what Open needs to know of a running lab.
type state struct {
	Options   Options                   `json:"options"`
	Programs  string                    `json:"programs"`
	Holders   map[string]ledger.Process `json:"holders"`
	Processes []processState            `json:"processes"`
}

type processState struct {
	Name string         `json:"name"`
	Host string         `json:"host"`
	Role role           `json:"role"`
	Args []string       `json:"args"`
	Env  []string       `json:"env,omitempty"`
	Run  ledger.Process `json:"run"`
}

// role says which field of the lab a process belongs to.
type role string

const (
	etcdRole       role = "etcd"
	apiserverRole  role = "kube-apiserver"
	managerRole    role = "kube-controller-manager"
	schedulerRole  role = "kube-scheduler"
	containerdRole role = "containerd"
	kubeletRole    role = "kubelet"
	proxyRole      role = "kube-proxy"
	edgeRole       role = edgeProgram
	ccmRole        role = ccmProgram
)

// process adds a program to the lab; it does not start it.
func (l *Lab) process(r role, name string, h *Host, args ...string) *Process {
	p := &Process{Name: name, Host: h, Args: args, lab: l, role: r}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, p)
	return p
}

// save writes the state file: whole or not at all.
func (l *Lab) save() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := state{Options: l.Options, Programs: l.programs, Holders: map[string]ledger.Process{}}
	s.Options.Log = nil
	for _, h := range append(l.Hosts(), l.Fabric) {
		s.Holders[h.Name] = h.holder
	}
	for _, p := range l.all {
		s.Processes = append(s.Processes, p.state())
	}
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	name := l.path(stateFile)
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// Open attaches to the lab in dir, which another process has brought up and
// left running; fs.ErrNotExist when there is none.
func Open(dir string) (*Lab, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	book, err := ledger.Read(dir)
	if err != nil {
		return nil, err
	}
	if !book.Running() {
		return nil, fmt.Errorf("lab in %q: was not taken down but does not run any more; take it down", dir)
	}
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("lab in %q: %w", dir, err)
	}
	s.Options.Log = io.Discard
	l := &Lab{Options: s.Options, programs: s.Programs, say: narrate(nil).say, ledger: book}
	l.restore(s)
	return l, nil
}

// Clean takes down the lab in dir, or what is left of it, without attaching to
// it first. It is no error if there is none.
func Clean(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if dir, err = filepath.EvalSymlinks(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return ledger.Clean(dir)
}

func (l *Lab) restore(s state) {
	l.layOut()
	for _, h := range append(l.Hosts(), l.Fabric) {
		h.holder = s.Holders[h.Name]
	}
	for _, ps := range s.Processes {
		h := l.Host(ps.Host)
		if h == nil {
			continue
		}
		p := l.process(ps.Role, ps.Name, h, ps.Args...)
		p.Env, p.run = ps.Env, ps.Run
		l.place(p)
	}
}

// place puts a process into the field that its role names.
func (l *Lab) place(p *Process) {
	cp := l.ControlPlane
	switch p.role {
	case etcdRole:
		cp.Etcd = p
	case apiserverRole:
		cp.APIServer = p
	case managerRole:
		cp.ControllerManager = p
	case schedulerRole:
		cp.Scheduler = p
	case ccmRole:
		l.Manager.process = p
	default: // it is a node's or an edge's
	}
	for _, n := range l.Nodes {
		if n.Host != p.Host {
			continue
		}
		switch p.role {
		case containerdRole:
			n.Containerd = p
		case kubeletRole:
			n.Kubelet = p
		case proxyRole:
			n.KubeProxy = p
		default: // nodes run nothing else
		}
	}
	for _, e := range l.Edges {
		if e.Host == p.Host && p.role == edgeRole {
			e.Process = p
		}
	}
}
