package edge

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxSuperseded is how many former Leases of a cluster are remembered.
const maxSuperseded = 8

// A lease says who may write a cluster's configuration. It is a file of its own,
// since a claim must be durable even though configurations need not be.
type lease struct {
	Schema string `json:"schema"`
	// Instance and Counter are the epoch. Instance is made anew when the file
	// was lost, so that no epoch is ever given out twice.
	Instance string `json:"instance"`
	Counter  uint64 `json:"counter"`
	// ClusterUID is the cluster that has claimed the name, empty before the first
	// claim and after the operator has accepted another one.
	ClusterUID string `json:"clusterUID,omitempty"`
	// The Lease of the last claim, and those before it.
	LeaseUID         string   `json:"leaseUID,omitempty"`
	LeaseTransitions int64    `json:"leaseTransitions"`
	Holder           string   `json:"holder,omitempty"`
	Superseded       []string `json:"superseded,omitempty"`
}

func newLease() lease { return lease{Schema: lb.Schema, Instance: rand.Text()[:12]} }

// epoch returns the only epoch that may write, empty before the first claim.
func (l lease) epoch() lb.Epoch {
	if l.Counter == 0 {
		return ""
	}
	return lb.Epoch(fmt.Sprintf("%s.%d", l.Instance, l.Counter))
}

// claimed returns the lease after a claim, or says why the claim is refused.
func (l lease) claimed(cluster lb.Cluster, c lb.Claim) (lease, error) {
	switch {
	case c.ClusterUID == "":
		return l, fmt.Errorf("claim %q: clusterUID is empty, it must be the UID of the namespace kube-system: %w", cluster, lb.ErrInvalid)
	case c.LeaseUID == "":
		return l, fmt.Errorf("claim %q: leaseUID is empty, it must be the UID of the Lease: %w", cluster, lb.ErrInvalid)
	case c.Holder == "":
		return l, fmt.Errorf("claim %q: holder is empty, it must be the Lease's holder: %w", cluster, lb.ErrInvalid)
	case c.LeaseTransitions < 0:
		return l, fmt.Errorf("claim %q: leaseTransitions %d is negative: %w", cluster, c.LeaseTransitions, lb.ErrInvalid)
	case max(len(c.ClusterUID), len(c.LeaseUID), len(c.Holder)) > maxClaimField:
		return l, fmt.Errorf("claim %q: a field is longer than %d bytes: %w", cluster, maxClaimField, lb.ErrInvalid)
	case l.ClusterUID != "" && c.ClusterUID != l.ClusterUID:
		return l, fmt.Errorf("claim %q by the cluster with kube-system UID %q: the name is pinned to UID %q; if the cluster was replaced, run on the edge: eclusa-edge cluster accept %s: %w",
			cluster, c.ClusterUID, l.ClusterUID, cluster, lb.ErrConflict)
	case slices.Contains(l.Superseded, c.LeaseUID):
		return l, fmt.Errorf("claim %q by %q: its Lease %q was replaced by Lease %q before: %w", cluster, c.Holder, c.LeaseUID, l.LeaseUID, lb.ErrStaleEpoch)
	case c.LeaseUID == l.LeaseUID && c.LeaseTransitions < l.LeaseTransitions:
		return l, fmt.Errorf("claim %q by %q with %d lease transitions: %q has claimed with %d: %w",
			cluster, c.Holder, c.LeaseTransitions, l.Holder, l.LeaseTransitions, lb.ErrStaleEpoch)
	case c.LeaseUID == l.LeaseUID && c.LeaseTransitions == l.LeaseTransitions && c.Holder != l.Holder:
		return l, fmt.Errorf("claim %q by %q with %d lease transitions: %q has claimed with as many: %w",
			cluster, c.Holder, c.LeaseTransitions, l.Holder, lb.ErrStaleEpoch)
	}
	next := l
	if l.LeaseUID != "" && c.LeaseUID != l.LeaseUID {
		next.Superseded = append(slices.Clone(l.Superseded), l.LeaseUID)
		if extra := len(next.Superseded) - maxSuperseded; extra > 0 {
			next.Superseded = next.Superseded[extra:]
		}
	}
	next.Counter++
	next.ClusterUID, next.LeaseUID, next.LeaseTransitions, next.Holder = c.ClusterUID, c.LeaseUID, c.LeaseTransitions, c.Holder
	return next, nil
}

// maxClaimField is the largest length of a claim's strings in bytes.
const maxClaimField = 512

func decodeLease(data []byte) (lease, error) {
	var l lease
	if err := json.Unmarshal(data, &l); err != nil {
		return lease{}, err
	}
	if l.Schema == "" || l.Instance == "" {
		return lease{}, errors.New("names no schema or no instance")
	}
	return l, nil
}

// load reads the lease file. A lost file, or a lost last claim, makes a new
// instance: epochs that were given out are stale then.
func (l *lease) load(f file) error {
	generation, err := f.load(func(data []byte) error {
		found, err := decodeLease(data)
		if err == nil {
			*l = found
		}
		return err
	})
	switch generation {
	case none:
		*l = newLease()
	case previous:
		l.Instance, l.Counter = newLease().Instance, 0
	case current:
	}
	return err
}

func (l lease) save(f file) error {
	l.Schema = lb.Schema
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode the lease: %w", err)
	}
	return f.save(append(data, '\n'))
}

// Accept lets the next claim of the cluster come from another Kubernetes cluster
// than the one that the name is pinned to in the state directory; that may be
// the directory of a running edge. It returns the kube-system UID that was
// pinned, and ErrNotFound if none was.
func Accept(stateDir string, cluster lb.Cluster) (string, error) {
	dir, err := clusterDir(stateDir, cluster)
	if err != nil {
		return "", err
	}
	notFound := fmt.Errorf("cluster %q in %q: nobody has claimed it yet, so there is nothing to accept: %w", cluster, stateDir, lb.ErrNotFound)
	f := file{path: filepath.Join(dir, leaseName)}
	// Making the lock would make the directory of a cluster that nobody knows.
	if generation, err := f.load(func(data []byte) error { _, err := decodeLease(data); return err }); generation == none {
		if err != nil {
			return "", err
		}
		return "", notFound
	}
	lock, err := lockFile(filepath.Join(dir, leaseLockName), unix.LOCK_EX)
	if err != nil {
		return "", fmt.Errorf("lock the lease of cluster %q: %w", cluster, err)
	}
	defer lock.Close()
	var l lease
	if err := l.load(f); err != nil {
		return "", err
	}
	pinned := l.ClusterUID
	if pinned == "" {
		return "", notFound
	}
	l.ClusterUID, l.LeaseUID, l.LeaseTransitions, l.Holder = "", "", 0, ""
	return pinned, l.save(f)
}
