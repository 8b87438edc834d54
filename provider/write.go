package provider

import (
	"k8s.io/apimachinery/pkg/types"
)

// Kind is a kind of object that is written to.
type Kind uint8

// The kinds of objects that are written to.
const (
	ServiceKind Kind = iota
	PoolKind
	EdgeKind
)

// String returns the kind's name in Kubernetes.
func (k Kind) String() string {
	switch k {
	case ServiceKind:
		return "Service"
	case PoolKind:
		return "AddressPool"
	case EdgeKind:
		return "Edge"
	}
	return "unknown"
}

// Target names an object.
type Target struct {
	Kind      Kind
	Namespace string
	Name      string
	// Meta says that the object itself is written to: the status of a custom
	// resource has no finalizers, while that of a Service has.
	Meta bool
}

// String returns the target as people write it.
func (t Target) String() string {
	if t.Namespace == "" {
		return t.Kind.String() + " " + t.Name
	}
	return t.Kind.String() + " " + t.Namespace + "/" + t.Name
}

// Priority says which writes go first.
type Priority uint8

// The priorities, the most urgent first.
const (
	// PriorityAddress records an address or that it is free again: others wait
	// for it.
	PriorityAddress Priority = iota
	// PriorityProblem tells of trouble.
	PriorityProblem
	// PriorityProgress tells that a Service is served.
	PriorityProgress
	// PriorityDetail is everything else.
	PriorityDetail
)

// Write is one PATCH of the subresource status of an object, or of the object
// itself. Without a Patch it is the question whether the object is still there.
type Write struct {
	// UID is the UID of the object.
	UID types.UID
	// Base is the resourceVersion that the write was decided on.
	Base string
	// Type and Patch are what is sent.
	Type  types.PatchType
	Patch []byte
	// Priority says what goes first.
	Priority Priority
	// Events are told when the write has succeeded.
	Events []Event
}

// Event is something that the people who watch an object should know.
type Event struct {
	// Type is Normal or Warning.
	Type    string
	Reason  string
	Message string
}
