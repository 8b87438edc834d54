package charts

import (
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	rbacv1 "k8s.io/api/rbac/v1"
)

// TestEveryRightIsExplained wants a comment above each rule and beside each verb.
func TestEveryRightIsExplained(t *testing.T) {
	rules, verbs := 0, 0
	for _, d := range render(t, variants(t)["all"]) {
		if !strings.Contains(d, "\nkind: ClusterRole\n") && !strings.Contains(d, "\nkind: Role\n") {
			continue
		}
		var doc yaml.Node
		if err := yaml.Unmarshal([]byte(d), &doc); err != nil {
			t.Fatal(err)
		}
		for _, rule := range child(doc.Content[0], "rules").Content {
			rules++
			if rule.HeadComment == "" && (len(rule.Content) == 0 || rule.Content[0].HeadComment == "") {
				t.Errorf("a rule has no comment that says why:\n%s", text(t, rule))
			}
			for _, verb := range child(rule, "verbs").Content {
				verbs++
				if verb.LineComment == "" {
					t.Errorf("the verb %q has no comment that says why:\n%s", verb.Value, text(t, rule))
				}
			}
		}
	}
	if rules < 12 || verbs < 20 {
		t.Errorf("found %d rules and %d verbs: the test looks at the wrong place", rules, verbs)
	}
}

// child returns the value of a key, and an empty node if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return &yaml.Node{}
}

func text(t *testing.T, n *yaml.Node) string {
	t.Helper()
	out, err := yaml.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestRights says, resource by resource, what the controller may do in the whole
// cluster and in its namespace, and that it is nothing else.
func TestRights(t *testing.T) {
	objects := render(t, variants(t)["minimal"])
	cluster := find[rbacv1.ClusterRole](t, objects, "ClusterRole", "eclusa-cloud-controller-manager")
	namespace := find[rbacv1.Role](t, objects, "Role", "eclusa-cloud-controller-manager")
	compare(t, "ClusterRole", cluster.Rules, map[string]string{
		"services":                                  "get list watch",
		"services/status":                           "patch",
		"nodes":                                     "list watch",
		"namespaces":                                "list watch",
		"namespaces[kube-system]":                   "get",
		"discovery.k8s.io/endpointslices":           "list watch",
		"eclusa.io/addresspools":                    "get list patch watch",
		"eclusa.io/addresspools/status":             "patch",
		"eclusa.io/edges":                           "get list watch",
		"eclusa.io/edges/status":                    "patch",
		"events":                                    "create patch",
		"authentication.k8s.io/tokenreviews":        "create",
		"authorization.k8s.io/subjectaccessreviews": "create",
	})
	compare(t, "Role", namespace.Rules, map[string]string{
		"coordination.k8s.io/leases":                                  "create",
		"coordination.k8s.io/leases[eclusa-cloud-controller-manager]": "get update",
	})
}

func compare(t *testing.T, what string, rules []rbacv1.PolicyRule, want map[string]string) {
	t.Helper()
	verbs := map[string][]string{}
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				name := strings.TrimPrefix(group+"/"+resource, "/")
				if len(r.ResourceNames) > 0 {
					name += "[" + strings.Join(r.ResourceNames, " ") + "]"
				}
				verbs[name] = append(verbs[name], r.Verbs...)
			}
		}
	}
	for name, v := range verbs {
		slices.Sort(v)
		if got := strings.Join(v, " "); got != want[name] {
			t.Errorf("%s: %s: may %q, want %q", what, name, got, want[name])
		}
	}
	for name := range want {
		if verbs[name] == nil {
			t.Errorf("%s: nothing about %s", what, name)
		}
	}
}
