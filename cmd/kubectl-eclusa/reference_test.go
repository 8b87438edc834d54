package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

const referenceFile = "../../docs/reference/kubectl-eclusa.md"

// TestReferenceIsCurrent fills in the page's markers and finds nothing to change.
func TestReferenceIsCurrent(t *testing.T) {
	page, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	marker := regexp.MustCompile(`(?s)<!-- (help|transcript)([^>]*?) -->\n.*?<!-- end -->`)
	shown := map[string]bool{}
	want := marker.ReplaceAllStringFunc(string(page), func(block string) string {
		m := marker.FindStringSubmatch(block)
		words := strings.Fields(m[2])
		text := ""
		if m[1] == "help" {
			shown[strings.Join(words, " ")] = true
			text = help(t, words)
		} else {
			text = transcript(t, words[0], words[1])
		}
		return fmt.Sprintf("<!-- %s%s -->\n```\n%s\n```\n<!-- end -->", m[1], m[2], strings.TrimRight(text, "\n"))
	})
	for _, c := range newCommand(newProgram()).Commands() {
		if !shown[c.Name()] {
			t.Errorf("the page does not have the help of %s", c.Name())
		}
	}
	if *update {
		if err := os.WriteFile(referenceFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(page), want); diff != "" {
		t.Errorf("%s is not current (-page +program):\n%s", referenceFile, diff)
	}
}

func help(t *testing.T, args []string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := newCommand(newProgram())
	cmd.SetOut(&out)
	cmd.SetArgs(append(slices.Clone(args), "--help"))
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The flags of all commands are told once.
	text := out.String()
	if i := strings.Index(text, "\nGlobal Flags:"); i >= 0 {
		text = text[:i]
	}
	return text
}

func transcript(t *testing.T, script, file string) string {
	t.Helper()
	archive, err := txtar.ParseFile("testdata/script/" + script + ".txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if f.Name == file {
			return string(f.Data)
		}
	}
	t.Fatalf("%s has no file %s", script, file)
	return ""
}

// scopedRule is what is allowed in one namespace, or everywhere.
type scopedRule struct {
	rbacv1.PolicyRule
	namespace string
}

// roles are the documented rules.
func roles(t *testing.T) []scopedRule {
	t.Helper()
	data, err := os.ReadFile("../../docs/reference/kubectl-eclusa-rbac.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var rules []scopedRule
	for i, doc := range strings.Split(string(data), "\n---\n") {
		var role rbacv1.Role // decodes ClusterRoles as well
		if err := yaml.UnmarshalStrict([]byte(doc), &role); err != nil {
			t.Fatalf("document %d: %v", i, err)
		}
		if (role.Kind == "Role") != (role.Namespace != "") {
			t.Errorf("document %d: %s %s has namespace %q", i, role.Kind, role.Name, role.Namespace)
		}
		for _, r := range role.Rules {
			rules = append(rules, scopedRule{r, role.Namespace})
		}
	}
	return rules
}

// checkAllowed fails if a request, as "METHOD path", is not allowed by the rules.
func checkAllowed(t *testing.T, rules []scopedRule, request string) {
	t.Helper()
	method, path, _ := strings.Cut(request, " ")
	parts := strings.Split(strings.Trim(path, "/"), "/")
	group, namespace := "", ""
	switch {
	case path == "/version":
		return // everybody may
	case parts[0] == "apis":
		group, parts = parts[1], parts[3:]
	default:
		parts = parts[2:]
	}
	if len(parts) > 2 && parts[0] == "namespaces" {
		namespace, parts = parts[1], parts[2:]
	}
	if namespace == "eclusa-system" { // where one scenario has the manager, and its Roles
		namespace = "kube-system"
	}
	resource := parts[0]
	verb := map[string]string{"GET": "get", "PATCH": "patch", "POST": "create"}[method]
	if len(parts) == 1 {
		verb = "list"
	}
	if len(parts) == 3 {
		resource += "/" + parts[2]
	}
	for _, r := range rules {
		if (r.namespace == "" || r.namespace == namespace) && slices.Contains(r.APIGroups, group) && slices.Contains(r.Resources, resource) && slices.Contains(r.Verbs, verb) {
			return
		}
	}
	t.Errorf("%s needs %s on %s of %q in namespace %q, which no documented role has", request, verb, resource, group, namespace)
}
