package v1alpha1_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/api/v1alpha1"
)

//go:generate go test -run ^TestReference$ . -update

var update = flag.Bool("update", false, "rewrite the reference of the custom resources")

const reference = "../../docs/reference/resources.md"

// examples are what each kind looks like. A test has the API server's validation
// accept them.
var examples = map[string]string{
	"addresspools": `apiVersion: eclusa.io/v1alpha1
kind: AddressPool
metadata:
  name: public
spec:
  addresses: [192.0.2.128/25, "2001:db8:1::100-2001:db8:1::1ff"]
  autoAssign: true
  namespaceSelector:
    matchLabels: {exposure: public}
  edgeSelector:
    matchLabels: {site: north}
`,
	"edges": `apiVersion: eclusa.io/v1alpha1
kind: Edge
metadata:
  name: edge-1
  labels: {site: north}
spec:
  endpoint: https://192.0.2.10:7443
`,
}

// notes are what the definitions themselves do not say, by kind.
var notes = map[string]string{
	"addresspools": "The finalizer `" + v1alpha1.PoolFinalizer + "` keeps a pool that is deleted until no address of it is in use or in quarantine:\n" +
		"[deleting and replacing a pool](../operations.md#delete-or-replace-a-pool). Conditions and their reasons:\n" +
		"[of AddressPools](../operations.md#of-addresspools).\n",
	"edges": "The annotation `" + v1alpha1.ReleaseRemovalsAnnotation + "`, with the value of `status.removalToken`, lets\n" +
		"[held removals](../operations.md#release-held-removals) pass. Conditions and their reasons: [of Edges](../operations.md#of-edges).\n",
}

// TestReference writes the reference from the definitions.
func TestReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Custom resources\n\n<!-- Written by `make generate` from charts/eclusa/crds. Do not edit it. -->\n\n" +
		"Both kinds are of the group `eclusa.io/v1alpha1` and cluster-scoped; `kubectl get eclusa` lists both. Who may write them\n" +
		"decides where traffic goes: they are not aggregated into the roles `edit` and `admin`. The API server itself refuses what\n" +
		"breaks a rule on this page. `kubectl explain addresspool.spec` has the same texts.\n\n")
	for _, name := range []string{"addresspools", "edges"} {
		writeKind(t, &b, name)
	}
	text := strings.TrimRight(b.String(), "\n") + "\n"
	if *update {
		if err := os.WriteFile(reference, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(page), text); diff != "" {
		t.Errorf("%s is not current; run make generate (-page +definitions):\n%s", reference, diff)
	}
}

func writeKind(t *testing.T, b *strings.Builder, name string) {
	t.Helper()
	text, err := os.ReadFile("../../charts/eclusa/crds/eclusa.io_" + name + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var crd apiextensionsv1.CustomResourceDefinition
	if err := yaml.UnmarshalStrict(text, &crd); err != nil {
		t.Fatal(err)
	}
	version := crd.Spec.Versions[0]
	schema := version.Schema.OpenAPIV3Schema
	fmt.Fprintf(b, "## %s\n\n%s\n\n```yaml\n%s```\n\n%s\n", crd.Spec.Names.Kind, cell(schema.Description), examples[name], notes[name])
	for _, part := range []string{"spec", "status"} {
		of := schema.Properties[part]
		fmt.Fprintf(b, "### %s of %s\n\n%s\n\n| field | type | bounds and default | what it is |\n|---|---|---|---|\n", part, articled(crd.Spec.Names.Kind), cell(of.Description))
		writeFields(t, b, of, part)
		b.WriteString("\n")
	}
	fmt.Fprintf(b, "### Columns of `kubectl get %s`\n\n| column | from | with |\n|---|---|---|\n", name)
	for _, c := range version.AdditionalPrinterColumns {
		with := ""
		if c.Priority > 0 {
			with = "`-o wide`"
		}
		fmt.Fprintf(b, "| %s | `%s` | %s |\n", c.Name, strings.ReplaceAll(strings.TrimPrefix(c.JSONPath, "."), "|", `\|`), with)
	}
	b.WriteString("\n")
}

func articled(kind string) string {
	if strings.ContainsAny(kind[:1], "AEIOU") {
		return "an " + kind
	}
	return "a " + kind
}

// foreign are types of Kubernetes, whose fields are not listed.
var foreign = map[string]string{
	"conditions":        "list of conditions",
	"edgeSelector":      "label selector (`matchLabels`, `matchExpressions`)",
	"namespaceSelector": "label selector (`matchLabels`, `matchExpressions`)",
	"serviceSelector":   "label selector (`matchLabels`, `matchExpressions`)",
}

// writeFields writes a row for each field, and for those of its entries.
func writeFields(t *testing.T, b *strings.Builder, of apiextensionsv1.JSONSchemaProps, path string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(of.Properties)) {
		p, at := of.Properties[name], path+"."+name
		if p.Description == "" {
			t.Errorf("%s: has no description", at)
		}
		kind, isForeign := foreign[name]
		description := cell(p.Description)
		if !isForeign {
			kind = kindOf(p)
			if p.Items != nil && p.Items.Schema.Description != "" && len(p.Items.Schema.Properties) == 0 {
				description += " " + cell(p.Items.Schema.Description)
			}
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", at, kind, strings.Join(boundsOf(p, slices.Contains(of.Required, name)), "; "), description)
		switch {
		case isForeign:
		case p.Items != nil:
			writeFields(t, b, *p.Items.Schema, at+"[]")
		default:
			writeFields(t, b, p, at)
		}
	}
}

func kindOf(p apiextensionsv1.JSONSchemaProps) string {
	switch {
	case p.Items != nil && len(p.Items.Schema.Properties) > 0:
		return "list of objects"
	case p.Items != nil:
		return "list of " + kindOf(*p.Items.Schema) + "s"
	case p.Format == "date-time":
		return "time"
	}
	return p.Type
}

// boundsOf says what the API server accepts, and what it fills in.
func boundsOf(p apiextensionsv1.JSONSchemaProps, required bool) []string {
	var out []string
	if required {
		out = append(out, "**required**")
	}
	if p.Default != nil {
		out = append(out, fmt.Sprintf("default `%s`", p.Default.Raw))
	}
	between := func(least, most *int64, of string) {
		switch {
		case least != nil && most != nil:
			out = append(out, fmt.Sprintf("%d to %d %s", *least, *most, of))
		case most != nil:
			out = append(out, fmt.Sprintf("at most %d %s", *most, of))
		case least != nil:
			out = append(out, fmt.Sprintf("at least %d %s", *least, of))
		}
	}
	between(p.MinItems, p.MaxItems, "entries")
	between(p.MinLength, p.MaxLength, "characters")
	if p.Pattern != "" {
		out = append(out, "`"+strings.ReplaceAll(p.Pattern, "|", `\|`)+"`")
	}
	for _, rule := range p.XValidations {
		out = append(out, cell(rule.Message))
	}
	if p.Items != nil && len(p.Items.Schema.Properties) == 0 {
		for _, bound := range boundsOf(*p.Items.Schema, false) {
			out = append(out, "each: "+bound)
		}
	}
	return out
}

// cell returns text for a table: one line.
func cell(text string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", `\|`)
}

// TestReferenceExamples has the validation of the API server accept the examples.
func TestReferenceExamples(t *testing.T) {
	for name, text := range examples {
		var object map[string]any
		if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
			t.Fatal(err)
		}
		for _, err := range validate(t, readDefinition(t, name), object) {
			t.Errorf("%s: the example is refused: %v", name, err)
		}
	}
}
