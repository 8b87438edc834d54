package charts

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// A schema is the part of JSON Schema that values.schema.json uses for structure.
type schema struct {
	Type       any               `json:"type"`
	Ref        string            `json:"$ref"`
	Properties map[string]schema `json:"properties"`
	Items      *schema           `json:"items"`
	Additional any               `json:"additionalProperties"`
	Defs       map[string]schema `json:"$defs"`
}

func readSchema(t *testing.T) schema {
	t.Helper()
	var s schema
	if err := json.Unmarshal([]byte(read(t, "eclusa/values.schema.json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// resolve follows a reference.
func (s schema) resolve(root schema) schema {
	if name, ok := strings.CutPrefix(s.Ref, "#/$defs/"); ok {
		return root.Defs[name]
	}
	return s
}

// paths lists all keys below a block, those of lists' entries with [].
func (s schema) paths(root schema, path string, into map[string]bool) {
	s = s.resolve(root)
	if s.Items != nil {
		s.Items.paths(root, path+"[]", into)
	}
	for name, property := range s.Properties {
		into[path+"."+name] = true
		property.paths(root, path+"."+name, into)
	}
}

// TestSchemaIsStrict wants every block either to list its keys and refuse others,
// or to be a map of a stated type.
func TestSchemaIsStrict(t *testing.T) {
	root := readSchema(t)
	free := []string{"/affinity/nodeAffinity", "/affinity/podAffinity", "/affinity/podAntiAffinity", "/global"} // Kubernetes' and the parent's
	var walk func(path string, s schema)
	walk = func(path string, s schema) {
		if s.Type == "object" && s.Additional == nil && !slices.ContainsFunc(free, func(f string) bool { return strings.HasSuffix(path, f) }) {
			t.Errorf("%s: says nothing of keys that it does not list", path)
		}
		if s.Additional == true {
			t.Errorf("%s: lets every key through", path)
		}
		for name, p := range s.Properties {
			walk(path+"/"+name, p)
		}
		if s.Items != nil {
			walk(path+"[]", *s.Items)
		}
	}
	walk("", root)
	for name, d := range root.Defs {
		walk("$defs/"+name, d)
	}
}

// TestSchemaKnowsTheValues wants every key of values.yaml in the schema, and every
// key of the schema that is no example's in values.yaml.
func TestSchemaKnowsTheValues(t *testing.T) {
	root := readSchema(t)
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, "eclusa/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	// What is left out in values.yaml because eclusa-edge has the defaults, and what
	// belongs to a user's own names.
	absent := []string{
		".global", ".edge.config.", ".edge.nodes.", ".controllerManager.affinity.", ".metrics.scrapers[]",
		".controllerManager.resources.", ".edge.resources.", "olerations[]",
	}
	known := map[string]bool{}
	root.paths(root, "", known)
	given := map[string]bool{}
	flatten(values, "", given)
	for _, k := range slices.Sorted(maps.Keys(known)) {
		if !given[k] && !slices.ContainsFunc(absent, func(a string) bool { return strings.Contains(k, a) }) {
			t.Errorf("values.yaml lacks %s, which the schema knows", k)
		}
	}
}

// flatten lists all keys of values.
func flatten(values map[string]any, path string, into map[string]bool) {
	for name, v := range values {
		into[path+"."+name] = true
		if block, ok := v.(map[string]any); ok {
			flatten(block, path+"."+name, into)
		}
	}
}

// TestSchemaKnowsTheEdge wants every key of an edge's configuration to be one of
// edge.config, unless the chart sets it.
func TestSchemaKnowsTheEdge(t *testing.T) {
	var reference map[string]any
	if err := yaml.UnmarshalStrict([]byte(read(t, "../cmd/eclusa-edge/reference.yaml")), &reference); err != nil {
		t.Fatal(err)
	}
	set := []string{".name", ".stateDir", ".api.listen", ".api.certFile", ".api.keyFile", ".api.clientCAFile", ".management", ".management.listen", ".management.tokenFile",
		".management.certFile", ".management.keyFile", ".management.clientCAFile", ".drainTimeout", ".nftables.sourceAddresses"}
	root := readSchema(t)
	known := map[string]bool{}
	root.Properties["edge"].Properties["config"].paths(root, "", known)
	keys := map[string]bool{}
	flatten(reference, "", keys)
	if list, ok := reference["clusters"].([]any); ok && len(list) > 0 {
		if first, ok := list[0].(map[string]any); ok {
			flatten(first, ".clusters[]", keys)
		}
	}
	for k := range keys {
		if !known[k] && !slices.Contains(set, k) {
			t.Errorf("edge.config%s: cmd/eclusa-edge/reference.yaml has this key, values.schema.json has not", k)
		}
	}
	for k := range known {
		if !keys[k] {
			t.Errorf("edge.config%s: values.schema.json has this key, cmd/eclusa-edge/reference.yaml has not", k)
		}
	}
}

// TestSchemaKnowsTheController wants the chart to be able to set every key of the
// controller's configuration.
func TestSchemaKnowsTheController(t *testing.T) {
	reference, rendered := map[string]any{}, map[string]any{}
	if err := yaml.UnmarshalStrict([]byte(read(t, "../cmd/eclusa-cloud-controller-manager/reference.yaml")), &reference); err != nil {
		t.Fatal(err)
	}
	data := find[corev1.ConfigMap](t, render(t, variants(t)["all"]), "ConfigMap", "eclusa-cloud-controller-manager").Data
	if err := yaml.UnmarshalStrict([]byte(data["cloud.yaml"]), &rendered); err != nil {
		t.Fatal(err)
	}
	want, got := map[string]bool{}, map[string]bool{}
	flatten(reference, "", want)
	flatten(rendered, "", got)
	if !maps.Equal(got, want) {
		t.Errorf("cloud.yaml of the chart has the keys %v, want those of reference.yaml, %v", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}
