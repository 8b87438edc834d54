// Package eclusa holds no code: its test keeps the rules that hold for the
// whole repository, each with the reason why.
package eclusa

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/eclusa-lb/eclusa"

// maxLines is where a file stops being one thing.
const maxLines = 500

// imports says which packages of ours a package may import, test files aside.
// The first pattern that matches decides; "/..." stands for a package and all
// below it. Decisions stay testable without Kubernetes, a kernel or a network
// only as long as these arrows do not turn round.
var imports = []struct {
	packages string
	may      []string
	why      string
}{
	{"version", nil, "every program has one, so it depends on nothing"},
	{"release/...", []string{"release/..."}, "a release is made of programs, not of their packages"},
	{"healthcheck", nil, "probing knows nothing of load balancers"},
	{"lb", []string{"healthcheck"}, "the vocabulary depends on nobody"},
	{"lb/...", []string{"lb", "healthcheck"}, "engines and the protocol do not know one another"},
	{"ipam", []string{"lb"}, "assigning addresses is pure"},
	{"spelling", nil, "a name is a name, whatever it is of"},
	{"configfile", []string{"spelling"}, "reading a file strictly has nothing to do with what it configures"},
	{"handover", nil, "the protocol between two processes of an edge passes descriptors and does not care what they are"},
	{"announce/...", nil, "announcers take addresses and nothing else"},
	{"edge", []string{"lb", "healthcheck"}, "the daemon's core knows neither HTTP clients nor an engine nor Kubernetes"},
	{"edge/page", []string{"lb", "healthcheck", "edge"}, "the status page shows what any edge knows, whatever carries its traffic"},
	{"api/...", nil, "the types of the API stand alone"},
	{"report", nil, "what is told to people stands alone, so that both who tells and who prints can use it"},
	{"provider", []string{"lb", "healthcheck", "ipam", "api/...", "report", "spelling"}, "the provider is handed its edges and cannot tell a network from a fake"},
	{"monitoring", nil, "proving what is said about metrics needs nothing but what programs expose"},
	{"cmd/...", []string{"..."}, "mains join everything"},
	{"charts/...", nil, "the chart is what users install; its tools read its files"},
	{"lab/...", []string{"lab/...", "release"}, "the lab installs eclusa the way a user does"},
	{"e2e", []string{"..."}, "tests may look at everything"},
	{"bench/...", []string{"..."}, "benchmarks may drive everything"},
}

// outside says which foreign packages only some of ours may import.
var outside = []struct {
	prefix string
	only   []string
	why    string
}{
	{"k8s.io/", []string{"provider", "api/...", "cmd/eclusa-cloud-controller-manager", "cmd/kubectl-eclusa", "lab/...", "e2e", "bench/..."}, "Kubernetes stays in provider and api"},
	{"github.com/vishvananda/", []string{"announce/...", "lb/nftables", "lb/lbtest", "cmd/eclusa-edge", "lab/...", "bench/..."}, "the kernel stays in engines and announcers"},
	{"net/http", []string{"lb/rest", "healthcheck", "edge", "edge/page", "cmd/...", "provider", "report", "monitoring", "lab/...", "e2e", "bench/..."}, "HTTP stays in lb/rest and on the management port"},
	{"testing", []string{"lb/lbtest"}, "tests stay out of the programs"},
}

// A source is one Go file of the repository.
type source struct {
	path string // slash-separated, from the root
	pkg  string // its folder
	test bool
	text []byte
	ast  *ast.File
}

func TestRules(t *testing.T) {
	sources := readSources(t)
	if len(sources) < 20 {
		t.Fatalf("found %d Go files; the walk looks at the wrong folder", len(sources))
	}
	for _, s := range sources {
		checkSize(t, s)
		if !s.test {
			checkImports(t, s)
			checkExits(t, s)
		}
		checkTesting(t, s)
	}
	checkPackages(t, sources)
}

func readSources(t *testing.T) []source {
	t.Helper()
	var sources []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasPrefix(name, "zz_generated") {
			return nil
		}
		text, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, p, text, parser.ParseComments)
		if err != nil {
			return err
		}
		p = filepath.ToSlash(p)
		sources = append(sources, source{path: p, pkg: path.Dir(p), test: strings.HasSuffix(p, "_test.go"), text: text, ast: file})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return sources
}

func checkSize(t *testing.T, s source) {
	if n := bytes.Count(s.text, []byte("\n")); n > maxLines {
		t.Errorf("%s: %d lines: a file over %d lines is more than one thing; split it by noun or verb", s.path, n, maxLines)
	}
}

func checkImports(t *testing.T, s source) {
	for _, spec := range s.ast.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			t.Errorf("%s: import %s: %v", s.path, spec.Path.Value, err)
			continue
		}
		if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
			checkOurs(t, s, ours)
			continue
		}
		for _, rule := range outside {
			if (imported == rule.prefix || strings.HasPrefix(imported, strings.TrimSuffix(rule.prefix, "/")+"/")) && !matchesAny(rule.only, s.pkg) {
				t.Errorf("%s: imports %q, which only %v may: %s", s.path, imported, rule.only, rule.why)
			}
		}
	}
}

func checkOurs(t *testing.T, s source, imported string) {
	if imported == "lb/lbtest" {
		t.Errorf("%s: imports lb/lbtest, which only tests may", s.path)
		return
	}
	for _, rule := range imports {
		if !matches(rule.packages, s.pkg) {
			continue
		}
		if !matchesAny(rule.may, imported) {
			t.Errorf("%s: imports %q; %s may import only %v: %s", s.path, imported, rule.packages, rule.may, rule.why)
		}
		return
	}
	t.Errorf("%s: package %q has no line in the import table; add one with its reason", s.path, s.pkg)
}

// checkExits keeps the decision to end a program in main.
func checkExits(t *testing.T, s source) {
	if s.ast.Name.Name == "main" {
		return
	}
	ast.Inspect(s.ast, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
			if x, ok := sel.X.(*ast.Ident); ok {
				name := x.Name + "." + sel.Sel.Name
				if name == "os.Exit" || strings.HasPrefix(name, "log.Fatal") || strings.HasPrefix(name, "klog.Fatal") {
					t.Errorf("%s: calls %s: only main ends a program", s.path, name)
				}
			}
		}
		return true
	})
}

// checkTesting keeps hope out of tests: a sleep is either too short or too long.
func checkTesting(t *testing.T, s source) {
	if !s.test {
		return
	}
	virtual := bytes.Contains(s.text, []byte(`"testing/synctest"`))
	for i, line := range bytes.Split(s.text, []byte("\n")) {
		if bytes.Contains(line, []byte("time."+"Sleep(")) && !virtual && !bytes.Contains(line, []byte("// poll")) {
			t.Errorf("%s:%d: time.Sleep in a test: poll with a deadline (and mark the line `// poll`) or use testing/synctest", s.path, i+1)
		}
	}
}

func checkPackages(t *testing.T, sources []source) {
	docs := map[string][]string{}
	for _, s := range sources {
		if s.test && s.pkg != "." {
			continue
		}
		if _, seen := docs[s.pkg]; !seen {
			docs[s.pkg] = nil
		}
		if s.ast.Doc != nil {
			docs[s.pkg] = append(docs[s.pkg], s.path)
		}
		name := s.ast.Name.Name
		if slices.Contains([]string{"util", "utils", "common", "helper", "helpers", "types", "base", "manager", "misc", "shared"}, name) || strings.Contains("/"+s.pkg+"/", "/pkg/") {
			t.Errorf("%s: package %q: a package is a noun that a user would say", s.path, s.pkg)
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %s: %d package comments %v: a package says once what it is for", pkg, len(files), files)
		}
	}
}

func matchesAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, pkg) })
}

func matches(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	if parent, ok := strings.CutSuffix(pattern, "/..."); ok {
		return pkg == parent || strings.HasPrefix(pkg, parent+"/")
	}
	return pattern == pkg
}

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, pkg string
		want         bool
	}{
		{"lb", "lb", true}, {"lb", "lb/rest", false}, {"lb/...", "lb/rest", true}, {"lb/...", "lbx", false}, {"...", "cmd/x", true},
	} {
		if got := matches(c.pattern, c.pkg); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.pattern, c.pkg, got, c.want)
		}
	}
}
