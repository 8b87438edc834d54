package provider

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

//go:generate go test -run ^TestAnnotationReference$ . -update

const annotationReference = "../docs/reference/annotations.md"

// documented is what the source says about an annotation.
type documented struct {
	name  Annotation
	what  string              // the first paragraph
	about map[string][]string // the rest, by key
}

// documentedKeys are the keys of the rest, in the order in which they are shown.
var documentedKeys = []string{"Type", "Accepts", "Default", "Example", "Needs", "Costs"}

// readDocumented reads the comments of annotations.go.
func readDocumented(t *testing.T) []documented {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "annotations.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var all []documented
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || len(spec.Values) != 1 || !strings.HasPrefix(spec.Names[0].Name, "Annotation") {
			return true
		}
		sum, ok := spec.Values[0].(*ast.BinaryExpr)
		if !ok {
			t.Fatalf("%s: must be Prefix + \"name\"", spec.Names[0].Name)
		}
		name, err := strconv.Unquote(sum.Y.(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		what, rest, _ := strings.Cut(spec.Doc.Text(), "\n\n")
		what = strings.TrimPrefix(strings.Join(strings.Fields(what), " "), spec.Names[0].Name+" ")
		d := documented{name: Annotation(Prefix + name), what: strings.ToUpper(what[:1]) + what[1:], about: map[string][]string{}}
		for line := range strings.Lines(rest) {
			key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
			if !ok || !slices.Contains(documentedKeys, key) || !strings.HasSuffix(value, ".") {
				t.Errorf("%s: comment has the line %q, want one of %q, a colon, and a sentence", spec.Names[0].Name, line, documentedKeys)
			}
			d.about[key] = append(d.about[key], strings.TrimSuffix(value, "."))
		}
		all = append(all, d)
		return true
	})
	return all
}

// TestAnnotationReference writes the reference from the comments.
func TestAnnotationReference(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Annotations\n\n<!-- Written by `make generate` from provider/annotations.go. Do not edit it. -->\n\n" +
		"What a Service of type LoadBalancer can ask for beyond its spec. Values are texts: quote numbers in YAML. Durations are\n" +
		"numbers with units, such as `500ms`, `30s` or `1h`. A value has at most 4096 bytes.\n\n" +
		"A value that cannot be read, or an annotation of this prefix that does not exist, never stops a Service: it counts as if\n" +
		"it were not there, and a warning Event and the Condition [`eclusa.io/Programmed`](../operations.md#eclusaioprogrammed)\n" +
		"(`AnnotationsIgnored`) name annotation, value, what is accepted and what is done instead. `address-pool` and `addresses`\n" +
		"are different: a Service whose request cannot be met, or whose `addresses` cannot be read, gets no other address, and\n" +
		"the Condition [`eclusa.io/AddressAssigned`](../operations.md#eclusaioaddressassigned) says why.\n\n" +
		"[What a Service can say](services.md) tells what becomes of all this, together with its spec, and what it costs.\n\n" +
		"`kubectl eclusa plan -f FILE` tells all of it before anything is applied, and `kubectl eclusa explain SERVICE` which\n" +
		"values are in force and where each comes from.\n\n## Written by users\n\n")
	all := readDocumented(t)
	writeAnnotations(&b, all, written)
	b.WriteString("## Written by eclusa\n\nThese are eclusa's memory of who has which address. Read them, and leave them as they are.\n\n")
	writeAnnotations(&b, all, recordedAnnotations)
	if len(all) != len(written)+len(recordedAnnotations) {
		t.Errorf("annotations.go documents %d annotations, and its lists have %d and %d", len(all), len(written), len(recordedAnnotations))
	}
	b.WriteString("On an Edge, `eclusa.io/release-removals` lets [held removals](../operations.md#release-held-removals) pass.\n")
	if *update {
		if err := os.WriteFile(annotationReference, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page, err := os.ReadFile(annotationReference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(page), b.String()); diff != "" {
		t.Errorf("%s is not current; run make generate (-page +source):\n%s", annotationReference, diff)
	}
}

// writeAnnotations writes an overview and a part for each of the names.
func writeAnnotations(b *strings.Builder, all []documented, names []Annotation) {
	var parts strings.Builder
	if len(names) == len(written) {
		b.WriteString("| annotation | accepts | default |\n|---|---|---|\n")
	}
	for _, name := range names {
		i := slices.IndexFunc(all, func(d documented) bool { return d.name == name })
		if i < 0 {
			continue // the caller counts
		}
		d := all[i]
		if len(names) == len(written) {
			anchor := strings.NewReplacer(".", "", "/", "").Replace(string(name))
			fmt.Fprintf(b, "| [`%s`](#%s) | %s | %s |\n", name, anchor, d.about["Accepts"][0], d.about["Default"][0])
		}
		fmt.Fprintf(&parts, "### %s\n\n%s\n\n", name, d.what)
		for _, key := range documentedKeys {
			for _, value := range d.about[key] {
				if key == "Example" {
					value = fmt.Sprintf("`%s: %q`", name, value)
				}
				fmt.Fprintf(&parts, "- %s: %s\n", key, value)
			}
		}
		parts.WriteString("\n")
	}
	if len(names) == len(written) {
		b.WriteString("\n")
	}
	b.WriteString(parts.String())
}

// TestDocumentedValues reads the examples, words and bounds that the comments
// promise, and those directly beyond the bounds.
func TestDocumentedValues(t *testing.T) {
	bounds := regexp.MustCompile(`^from (\w+) to (\w+)`)
	words := regexp.MustCompile(`^[a-z0-9-]+(, [a-z0-9-]+)* or [a-z0-9-]+`)
	examined := 0
	for _, d := range readDocumented(t) {
		ours := slices.Contains(written, d.name)
		for _, key := range []string{"Type", "Example", "Accepts", "Default"} {
			if len(d.about[key]) == 0 && (ours || key == "Type" || key == "Example") {
				t.Errorf("%s: its comment has no line %q", d.name, key)
			}
		}
		for _, example := range d.about["Example"] {
			accepted(t, d.name, example)
		}
		for _, text := range d.about["Accepts"] {
			if m := bounds.FindStringSubmatch(text); m != nil {
				examined++
				accepted(t, d.name, m[1])
				accepted(t, d.name, m[2])
				refused(t, d.name, beyond(t, m[1], -1))
				refused(t, d.name, beyond(t, m[2], 1))
			}
			if m := words.FindString(text); m != "" {
				examined++
				for word := range strings.SplitSeq(strings.ReplaceAll(m, " or ", ", "), ", ") {
					accepted(t, d.name, word)
				}
				refused(t, d.name, "something-else")
			}
		}
	}
	if examined < 13 {
		t.Errorf("examined %d lines with words or bounds; they are read wrongly", examined)
	}
}

// around are annotations beside which a value of another is right: a timeout
// must not be longer than the interval.
func around(name Annotation, value string) map[string]string {
	out := map[string]string{string(name): value}
	if name == AnnotationHealthCheckTimeout {
		out[string(AnnotationHealthCheckInterval)] = "10m"
	}
	if name == AnnotationHealthCheckInterval {
		out[string(AnnotationHealthCheckTimeout)] = "10ms"
	}
	return out
}

func accepted(t *testing.T, name Annotation, value string) {
	t.Helper()
	if _, complaints := ReadAnnotations(around(name, value)); len(complaints) > 0 {
		t.Errorf("its comment promises a value that is refused: %v", complaints)
	}
}

func refused(t *testing.T, name Annotation, value string) {
	t.Helper()
	if _, complaints := ReadAnnotations(around(name, value)); len(complaints) != 1 {
		t.Errorf("%s: %q is accepted against what its comment says: %v", name, value, complaints)
	}
}

// beyond returns the number or duration directly below or above a bound.
func beyond(t *testing.T, bound string, step int) string {
	t.Helper()
	if n, err := strconv.Atoi(bound); err == nil {
		return strconv.Itoa(n + step)
	}
	d, err := time.ParseDuration(bound)
	if err != nil {
		t.Fatal(err)
	}
	return (d + time.Duration(step)*time.Millisecond).String()
}
