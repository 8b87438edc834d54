package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Edge is a load balancer in front of the cluster: a machine that runs
// eclusa-edge.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=eclusa
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Engine",type=string,JSONPath=`.status.engine`
// +kubebuilder:printcolumn:name="Applied",type=integer,JSONPath=`.status.appliedRevision`
// +kubebuilder:printcolumn:name="Desired",type=integer,JSONPath=`.status.desiredRevision`
// +kubebuilder:printcolumn:name="Serving",type=integer,JSONPath=`.status.loadBalancersApplied`
// +kubebuilder:printcolumn:name="Services",type=integer,JSONPath=`.status.loadBalancers`
// +kubebuilder:printcolumn:name="Up",type=integer,JSONPath=`.status.backendsUp`
// +kubebuilder:printcolumn:name="Backends",type=integer,JSONPath=`.status.backends`
// +kubebuilder:printcolumn:name="Version",type=string,JSONPath=`.status.version`
// +kubebuilder:printcolumn:name="Drain",type=boolean,priority=1,JSONPath=`.spec.drain`
// +kubebuilder:printcolumn:name="Paused",type=boolean,priority=1,JSONPath=`.spec.paused`
// +kubebuilder:printcolumn:name="Endpoint",type=string,priority=1,JSONPath=`.spec.endpoint`
// +kubebuilder:printcolumn:name="Problem",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Edge struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says where the edge is reached and what it is to do.
	Spec EdgeSpec `json:"spec"`
	// Status says how it is. It is written by eclusa, at most every five seconds.
	Status EdgeStatus `json:"status,omitempty"`
}

// EdgeSpec says where an edge is reached and what it is to do.
type EdgeSpec struct {
	// Endpoint is the URL of the edge's API, such as https://edge-1:7443.
	//
	// +kubebuilder:validation:MinLength=9
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule="isURL(self) && url(self).getScheme() == 'https' && url(self).getHostname() != ''",message="must be an https URL with a host, such as https://edge-1:7443"
	// +kubebuilder:validation:XValidation:rule="!isURL(self) || (url(self).getEscapedPath() in ['', '/'] && url(self).getQuery().size() == 0 && !self.contains('@') && !self.contains('#'))",message="must have no path, query, fragment or user name"
	Endpoint string `json:"endpoint"`

	// ServerName is the name that the edge's certificate must carry. Without it
	// that is the name of this object.
	//
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?$`
	// +optional
	ServerName string `json:"serverName,omitempty"`

	// Drain has the edge let go of all load balancers of this cluster, before
	// maintenance: it takes no new connections, established ones may end within
	// their drain timeout, and then the addresses go. Other edges of the pools go on
	// serving them.
	//
	// +optional
	Drain bool `json:"drain,omitempty"`

	// Paused stops all writes to the edge. It goes on serving what it has.
	//
	// +optional
	Paused bool `json:"paused,omitempty"`
}

// ReleaseRemovalsAnnotation on an Edge lets removals pass that are held back on
// this edge because they are so many. Its value is the token that the Edge's status
// shows for them: it is of no use for others that are held later.
const ReleaseRemovalsAnnotation = "eclusa.io/release-removals"

// The types of an Edge's conditions.
const (
	// EdgeReady is True when the edge is reached and serves what the cluster
	// wants, as far as it can.
	EdgeReady = "Ready"
	// EdgeRemovalHeld is True while removals of many load balancers or nodes at
	// once wait for their confirmation.
	EdgeRemovalHeld = "RemovalHeld"
)

// PoolReady is the condition of an AddressPool that says whether it can be used.
const PoolReady = "Ready"

// Limits of the lists in an EdgeStatus.
const (
	MaxSickNodes    = 32
	MaxHeldRemovals = 32
	MaxRefused      = 32
)

// EdgeStatus says how an edge is, as its cluster sees it.
type EdgeStatus struct {
	// Conditions of the edge: Ready and RemovalHeld.
	//
	// +kubebuilder:validation:MaxItems=8
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// Name is the name that the edge gives itself.
	//
	// +optional
	Name string `json:"name,omitempty"`
	// Engine is the edge's data plane, such as "proxy".
	//
	// +optional
	Engine string `json:"engine,omitempty"`
	// Version is the version of the edge's program.
	//
	// +optional
	Version string `json:"version,omitempty"`
	// Capabilities are what the edge can do.
	//
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	// +optional
	Capabilities []string `json:"capabilities,omitempty"`

	// DesiredRevision is the revision of the configuration that the cluster wants
	// the edge to have.
	//
	// +optional
	DesiredRevision int64 `json:"desiredRevision"`
	// AppliedRevision is the newest revision that the edge's data plane has
	// applied.
	//
	// +optional
	AppliedRevision int64 `json:"appliedRevision"`

	// LoadBalancers is the number of load balancers that this edge should serve.
	//
	// +optional
	LoadBalancers int32 `json:"loadBalancers"`
	// LoadBalancersApplied is the number of those that it serves.
	//
	// +optional
	LoadBalancersApplied int32 `json:"loadBalancersApplied"`
	// Refused are load balancers that the edge does not serve, with the reason; at
	// most 32 of them.
	//
	// +kubebuilder:validation:MaxItems=32
	// +listType=map
	// +listMapKey=service
	// +optional
	Refused []RefusedService `json:"refused,omitempty"`

	// Backends is the number of nodes that the edge checks, each counted once for
	// every different health check.
	//
	// +optional
	Backends int32 `json:"backends"`
	// BackendsUp is the number of those that are up.
	//
	// +optional
	BackendsUp int32 `json:"backendsUp"`
	// SickNodes are the nodes that the edge sees not up, with the reason; at most
	// 32 of them.
	//
	// +kubebuilder:validation:MaxItems=32
	// +listType=atomic
	// +optional
	SickNodes []SickNode `json:"sickNodes,omitempty"`

	// NotDurable is true while the edge serves a configuration that it could not
	// save.
	//
	// +optional
	NotDurable bool `json:"notDurable,omitempty"`
	// HeldRemovals are the removals that wait for their confirmation; at most 32
	// of them.
	//
	// +kubebuilder:validation:MaxItems=32
	// +listType=set
	// +optional
	HeldRemovals []string `json:"heldRemovals,omitempty"`
	// RemovalToken stands for all held removals: as the value of the annotation
	// eclusa.io/release-removals it lets them pass.
	//
	// +optional
	RemovalToken string `json:"removalToken,omitempty"`
	// DriftRepaired counts how often the edge was found with another
	// configuration than the cluster had given it, and was set right.
	//
	// +optional
	DriftRepaired int64 `json:"driftRepaired"`
}

// RefusedService is a load balancer that an edge does not serve.
type RefusedService struct {
	// Service is the namespace and name of the Service.
	Service string `json:"service"`
	// Reason is the fixed name of the kind of trouble, such as "address-held".
	Reason string `json:"reason"`
	// Message says what is wrong.
	//
	// +optional
	Message string `json:"message,omitempty"`
}

// SickNode is a node that an edge sees not up.
type SickNode struct {
	// Node is the node's name.
	Node string `json:"node"`
	// Check is the health check that the node does not pass.
	Check string `json:"check"`
	// State is unknown, draining or down.
	State string `json:"state"`
	// Message is what the last failed probe said.
	//
	// +optional
	Message string `json:"message,omitempty"`
	// Since is when the state was entered.
	//
	// +optional
	Since metav1.Time `json:"since,omitempty"`
}

// EdgeList is a list of edges.
//
// +kubebuilder:object:root=true
type EdgeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Edge `json:"items"`
}
