package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// AddressPool is a set of addresses that Services of type LoadBalancer may get.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,categories=eclusa
// +kubebuilder:subresource:status
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Used",type=integer,JSONPath=`.status.used`
// +kubebuilder:printcolumn:name="Quarantined",type=integer,JSONPath=`.status.quarantinedTotal`
// +kubebuilder:printcolumn:name="Total",type=integer,JSONPath=`.status.total`
// +kubebuilder:printcolumn:name="Auto",type=boolean,JSONPath=`.spec.autoAssign`
// +kubebuilder:printcolumn:name="Addresses",type=string,JSONPath=`.spec.addresses`
// +kubebuilder:printcolumn:name="Problem",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type AddressPool struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec says which addresses these are and who may have them.
	Spec AddressPoolSpec `json:"spec"`
	// Status says how many of them are in use. It is written by eclusa.
	Status AddressPoolStatus `json:"status,omitempty"`
}

// AddressRange is a CIDR such as 192.0.2.0/24, a range such as
// 192.0.2.10-192.0.2.20, both ends included, or one address. Of a CIDR the
// network and the broadcast address are left out; a range includes them.
//
// +kubebuilder:validation:MinLength=2
// +kubebuilder:validation:MaxLength=79
// +kubebuilder:validation:XValidation:rule="self.contains('-') ? self.split('-').size() == 2 && self.split('-').all(a, isIP(a)) : isIP(self) || isCIDR(self)",message="must be a CIDR such as 192.0.2.0/24, a range such as 192.0.2.10-192.0.2.20, or one address"
// +kubebuilder:validation:XValidation:rule="!self.contains('-') || self.split('-').size() != 2 || !self.split('-').all(a, isIP(a)) || ip(self.split('-')[0]).family() == ip(self.split('-')[1]).family()",message="both ends of a range must be of the same address family"
// +kubebuilder:validation:XValidation:rule="self.contains('-') || !isCIDR(self) || cidr(self) == cidr(self).masked()",message="a CIDR must begin with its network address: bits beyond the prefix length must be zero"
type AddressRange string

// AddressPoolSpec says which addresses a pool has and who may have them.
//
// +kubebuilder:validation:XValidation:rule="!has(self.sharing) || self.sharing != 'Always' || !has(self.forwarding) || self.forwarding != 'Direct'",message="sharing Always cannot go with forwarding Direct: nodes give a Service all of its ports on each of its addresses, whoever else has them there"
type AddressPoolSpec struct {
	// Addresses are the addresses of the pool: CIDRs, ranges and single
	// addresses, IPv4 and IPv6. They must not overlap, neither with each other nor
	// with those of another pool.
	//
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	// +kubebuilder:validation:XValidation:rule="self.all(a, a.contains('-') || !isCIDR(a) || self.all(b, a == b || !(isCIDR(b) ? cidr(a).containsCIDR(b) : isIP(b) && cidr(a).containsIP(b))))",message="addresses must not overlap"
	Addresses []AddressRange `json:"addresses"`

	// AutoAssign gives addresses of this pool to Services that ask for none in
	// particular. Without it only Services get one that name the pool or an
	// address of it in an annotation.
	//
	// +kubebuilder:default=true
	// +optional
	AutoAssign *bool `json:"autoAssign,omitempty"`

	// Sharing says who may share an address of this pool, each with ports of its
	// own: with ByKey Services of one namespace with the same
	// eclusa.io/sharing-key, with Always all Services that the pool admits, whatever
	// their namespaces. Always is for sites with few addresses, such as one for
	// everything: a Service gets an address of its own while there is one, and
	// then the first one on which its ports are free. A port belongs to the Service
	// that has it already, however old others are who come to want it.
	//
	// +kubebuilder:validation:Enum=ByKey;Always
	// +kubebuilder:default=ByKey
	// +optional
	Sharing Sharing `json:"sharing,omitempty"`

	// Forwarding says how packets to addresses of this pool get to nodes. With NAT
	// edges make connections of their own to node ports. With Direct they route
	// packets to nodes as they are, so that pods see the addresses of clients as
	// kube-proxy passes them on, Services need no node ports, and answers need not
	// come back through the edge. Direct needs edges whose engine can do it, with
	// the nodes on a link of theirs, and cannot announce clients with the PROXY
	// protocol nor limit connections. It does not go with sharing Always.
	//
	// +kubebuilder:validation:Enum=NAT;Direct
	// +kubebuilder:default=NAT
	// +optional
	Forwarding Forwarding `json:"forwarding,omitempty"`

	// NamespaceSelector, if given, admits only Services of namespaces with these
	// labels.
	//
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`

	// ServiceSelector, if given, admits only Services with these labels.
	//
	// +optional
	ServiceSelector *metav1.LabelSelector `json:"serviceSelector,omitempty"`

	// EdgeSelector, if given, says by the labels of Edge objects which edges serve
	// the addresses of this pool. Without it all edges do.
	//
	// +optional
	EdgeSelector *metav1.LabelSelector `json:"edgeSelector,omitempty"`
}

// Sharing says who may share an address.
type Sharing string

// Who may share an address.
const (
	ShareByKey  Sharing = "ByKey"
	ShareAlways Sharing = "Always"
)

// Forwarding says how packets get to nodes.
type Forwarding string

// How packets get to nodes.
const (
	ForwardNAT    Forwarding = "NAT"
	ForwardDirect Forwarding = "Direct"
)

// PoolFinalizer keeps an AddressPool as long as addresses of it are in use or in
// quarantine.
const PoolFinalizer = "eclusa.io/address-pool"

// MaxQuarantined is the number of quarantined addresses that the status of a
// pool lists.
const MaxQuarantined = 4096

// AddressPoolStatus says how many addresses of a pool are in use.
type AddressPoolStatus struct {
	// Total is the number of addresses in the pool; pools with more than
	// 9007199254740991 say that number.
	//
	// +optional
	Total int64 `json:"total"`

	// Used is the number of addresses that Services have.
	//
	// +optional
	Used int64 `json:"used"`

	// QuarantinedTotal is the number of addresses that no Service has any more
	// but that an edge may still serve.
	//
	// +optional
	QuarantinedTotal int64 `json:"quarantinedTotal"`

	// Quarantined are the addresses that no Service has any more and that are not
	// given away before every edge of the pool has confirmed that it serves them
	// no longer, or its Edge object is gone.
	//
	// +kubebuilder:validation:MaxItems=4096
	// +listType=map
	// +listMapKey=address
	// +optional
	Quarantined []QuarantinedAddress `json:"quarantined,omitempty"`

	// QuarantineTruncated says that more addresses were freed than Quarantined
	// can list. After a restart nothing new is assigned from the pool then before
	// all its edges have been reached.
	//
	// +optional
	QuarantineTruncated bool `json:"quarantineTruncated,omitempty"`

	// Conditions of the pool. Ready is False when the pool cannot be used, with
	// the reason.
	//
	// +kubebuilder:validation:MaxItems=8
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// QuarantinedAddress is an address that must not be given away yet.
type QuarantinedAddress struct {
	// Address is the freed address.
	//
	// +kubebuilder:validation:MaxLength=45
	Address string `json:"address"`
	// Service is the namespace and name of the Service that had the address.
	//
	// +kubebuilder:validation:MaxLength=320
	// +optional
	Service string `json:"service,omitempty"`
	// UID is the UID of that Service.
	//
	// +kubebuilder:validation:MaxLength=64
	// +optional
	UID string `json:"uid,omitempty"`
	// Since is when the address was freed.
	//
	// +optional
	Since metav1.Time `json:"since,omitempty"`
}

// AddressPoolList is a list of address pools.
//
// +kubebuilder:object:root=true
type AddressPoolList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AddressPool `json:"items"`
}
