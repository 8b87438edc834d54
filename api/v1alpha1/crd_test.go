package v1alpha1_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	schemavalidation "k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"sigs.k8s.io/yaml"
)

// readDefinition reads a generated definition the way the API server does.
func readDefinition(t *testing.T, name string) *apiextensions.CustomResourceDefinition {
	t.Helper()
	text, err := os.ReadFile("../../charts/eclusa/crds/eclusa.io_" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var v1 apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &v1); err != nil {
		t.Fatal(err)
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&v1)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&v1.Spec)
	var internal apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&v1, &internal, nil); err != nil {
		t.Fatal(err)
	}
	return &internal
}

// TestDefinitionsAreValid lets the API server's own validation judge the
// generated manifests, with the types and the cost of their rules.
func TestDefinitionsAreValid(t *testing.T) {
	for _, name := range []string{"addresspools", "edges"} {
		d := readDefinition(t, name)
		d.Status.StoredVersions = []string{"v1alpha1"}
		for _, err := range validation.ValidateCustomResourceDefinition(t.Context(), d) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// validate judges an object as the API server would at its creation.
func validate(t *testing.T, d *apiextensions.CustomResourceDefinition, object map[string]any) field.ErrorList {
	t.Helper()
	spec := d.Spec.Validation
	if spec == nil {
		spec = d.Spec.Versions[0].Schema
	}
	structural, err := schema.NewStructural(spec.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	open, _, err := schemavalidation.NewSchemaValidator(spec.OpenAPIV3Schema)
	if err != nil {
		t.Fatal(err)
	}
	errs := schemavalidation.ValidateCustomResource(nil, object, open)
	errs = append(errs, listtype.ValidateListSetsAndMaps(nil, structural, object)...)
	rules := cel.NewValidator(structural, true, celconfig.PerCallLimit)
	more, _ := rules.Validate(t.Context(), nil, structural, object, nil, celconfig.RuntimeCELCostBudget)
	return append(errs, more...)
}

func TestAddressPoolRules(t *testing.T) {
	d := readDefinition(t, "addresspools")
	many := func(n int) string {
		var all []string
		for i := range n {
			all = append(all, fmt.Sprintf("10.%d.0.0/16", i))
		}
		return strings.Join(all, " ")
	}
	for addresses, want := range map[string]string{
		"192.0.2.0/24":                          "",
		"192.0.2.10-192.0.2.20":                 "",
		"192.0.2.1":                             "",
		"2001:db8::/64":                         "",
		"2001:db8::1-2001:db8::ff 192.0.2.0/30": "",
		"192.0.2.0/25 192.0.2.128/25":           "",
		many(64):                                "",
		many(65):                                "must have at most 64 items",
		"":                                      "should have at least 1 items",
		"192.0.2.0/33":                          "must be a CIDR",
		"192.0.2.256":                           "must be a CIDR",
		"192.0.2.1-192.0.2.2-192.0.2.3":         "must be a CIDR",
		"pool":                                  "must be a CIDR",
		"192.0.2.1-2001:db8::1":                 "same address family",
		"192.0.2.1/24":                          "network address",
		"192.0.2.0/24 192.0.2.0/25":             "must not overlap",
		"192.0.2.0/24 192.0.2.7":                "must not overlap",
		"192.0.2.7 192.0.2.0/24":                "must not overlap",
		"192.0.2.7 192.0.2.7":                   "Duplicate value",
		strings.Repeat("1", 80):                 "Too long",
	} {
		items := []any{}
		for _, a := range strings.Fields(addresses) {
			items = append(items, a)
		}
		check(t, addresses, want, validate(t, d, map[string]any{
			"apiVersion": "eclusa.io/v1alpha1", "kind": "AddressPool",
			"metadata": map[string]any{"name": "p"},
			"spec":     map[string]any{"addresses": items},
		}))
	}
}

func TestEdgeRules(t *testing.T) {
	d := readDefinition(t, "edges")
	for endpoint, want := range map[string]string{
		"https://edge-1:7443":       "",
		"https://192.0.2.1:7443/":   "",
		"https://[2001:db8::1]:443": "",
		"https://edge-1":            "",
		"http://edge-1:7443":        "must be an https URL",
		"edge-1:7443":               "must be an https URL",
		"https://":                  "at least 9 chars",
		"https://:7443":             "must be an https URL",
		"https://edge-1:7443/v1":    "must have no path",
		"https://edge-1:7443?a=b":   "must have no path",
		"https://me@edge-1:7443":    "must have no path",
		"https://edge-1:7443/#x":    "must have no path",
	} {
		check(t, endpoint, want, validate(t, d, map[string]any{
			"apiVersion": "eclusa.io/v1alpha1", "kind": "Edge",
			"metadata": map[string]any{"name": "edge-1"},
			"spec":     map[string]any{"endpoint": endpoint},
		}))
	}
}

func check(t *testing.T, what, want string, got field.ErrorList) {
	t.Helper()
	switch {
	case want == "" && len(got) > 0:
		t.Errorf("%q: got %v, want no error", what, got.ToAggregate())
	case want != "" && (len(got) == 0 || !strings.Contains(got.ToAggregate().Error(), want)):
		t.Errorf("%q: got %v, want an error with %q", what, got.ToAggregate(), want)
	}
}

// TestDescriptions makes sure that every field of ours says what it is for.
func TestDescriptions(t *testing.T) {
	for _, name := range []string{"addresspools", "edges"} {
		spec := readDefinition(t, name).Spec
		root := spec.Validation
		if root == nil {
			root = spec.Versions[0].Schema
		}
		describe(t, name, root.OpenAPIV3Schema.Properties, 0)
	}
}

func describe(t *testing.T, path string, properties map[string]apiextensions.JSONSchemaProps, depth int) {
	for field, p := range properties {
		if field == "metadata" && depth == 0 {
			continue
		}
		if p.Description == "" {
			t.Errorf("%s.%s has no description", path, field)
		}
		describe(t, path+"."+field, p.Properties, depth+1)
	}
}
