// Package v1alpha1 holds the Kubernetes types of eclusa in their version
// v1alpha1: [AddressPool], the addresses that Services may get, and [Edge], a
// load balancer in front of the cluster. Both are cluster-scoped: whoever may
// write them decides where traffic goes.
//
// The doc comments of the fields are the descriptions in the custom resource
// definitions, which are generated from this package.
//
// +kubebuilder:object:generate=true
// +groupName=eclusa.io
package v1alpha1

//go:generate go tool controller-gen object crd:crdVersions=v1 paths=. output:crd:dir=../../charts/eclusa/crds
