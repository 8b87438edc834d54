package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of this package's types.
var GroupVersion = schema.GroupVersion{Group: "eclusa.io", Version: "v1alpha1"}

// The resources of this package, as they stand in request paths.
var (
	AddressPoolResource = GroupVersion.WithResource("addresspools")
	EdgeResource        = GroupVersion.WithResource("edges")
)

// The kinds of this package.
const (
	AddressPoolKind = "AddressPool"
	EdgeKind        = "Edge"
)

// AddToScheme makes the types of this package known to a scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &AddressPool{}, &AddressPoolList{}, &Edge{}, &EdgeList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
