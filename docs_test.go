package eclusa

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A page is one Markdown file.
type page struct {
	path   string
	text   string // without what stands in code
	blocks []block
}

// A block is code in a page.
type block struct {
	line int
	info string // what stands behind the opening fence
	code string
}

func readPages(t *testing.T) map[string]page {
	t.Helper()
	pages := map[string]page{}
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && p != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || d.Name() == "bin" || d.Name() == "dist"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(p, ".md"):
			return nil
		}
		data, err := os.ReadFile(p)
		if err == nil {
			pages[filepath.ToSlash(p)] = parsePage(filepath.ToSlash(p), string(data))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) < 6 {
		t.Fatalf("found %d pages; the walk looks at the wrong folder", len(pages))
	}
	return pages
}

func parsePage(path, text string) page {
	p := page{path: path}
	var kept []string
	var open *block
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimSpace(line)
		switch {
		case open == nil && strings.HasPrefix(trimmed, "```"):
			open = &block{line: i + 1, info: strings.TrimPrefix(trimmed, "```")}
			kept = append(kept, "")
		case open == nil:
			kept = append(kept, line)
		case trimmed == "```":
			p.blocks = append(p.blocks, *open)
			open = nil
			kept = append(kept, "")
		default:
			open.code += line + "\n"
			kept = append(kept, "")
		}
	}
	p.text = strings.Join(kept, "\n")
	return p
}

var (
	link       = regexp.MustCompile(`\[[^\]]*\]\(([^)\s]+)\)`)
	heading    = regexp.MustCompile(`(?m)^#{1,6} +(.+?) *$`)
	inlineCode = regexp.MustCompile("`[^`\n]*`")
	noAnchor   = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	linkText   = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
)

// anchors returns the anchors that GitHub gives to a page's headings.
func (p page) anchors() map[string]bool {
	out := map[string]bool{}
	times := map[string]int{}
	for _, m := range heading.FindAllStringSubmatch(p.text, -1) {
		text := linkText.ReplaceAllString(m[1], "$1")
		a := strings.ReplaceAll(noAnchor.ReplaceAllString(strings.ToLower(text), ""), " ", "-")
		if n := times[a]; n > 0 {
			out[fmt.Sprintf("%s-%d", a, n)] = true
		} else {
			out[a] = true
		}
		times[a]++
	}
	return out
}

// TestLinks finds the target of every relative link, anchors included.
func TestLinks(t *testing.T) {
	pages := readPages(t)
	n := 0
	for _, p := range pages {
		for _, m := range link.FindAllStringSubmatch(inlineCode.ReplaceAllString(p.text, ""), -1) {
			target := m[1]
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			n++
			file, anchor, hasAnchor := strings.Cut(target, "#")
			to := p.path
			if file != "" {
				to = filepath.ToSlash(filepath.Join(filepath.Dir(p.path), file))
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: link to %q: there is no %s", p.path, target, to)
				continue
			}
			if there, isPage := pages[to]; hasAnchor && (!isPage || !there.anchors()[anchor]) {
				t.Errorf("%s: link to %q: %s has no heading of that anchor", p.path, target, to)
			}
		}
	}
	if n < 40 {
		t.Errorf("found %d links; they are read wrongly", n)
	}
}

// TestAnchors checks what is believed about GitHub's anchors.
func TestAnchors(t *testing.T) {
	p := parsePage("p.md", "# One Two\n## `code` & more!\n```\n# none\n```\n## eclusa.io/AddressAssigned\n## One two\n## [A link](x.md) here\n")
	for _, want := range []string{"one-two", "code--more", "eclusaioaddressassigned", "one-two-1", "a-link-here"} {
		if !p.anchors()[want] {
			t.Errorf("no anchor %q among %v", want, p.anchors())
		}
	}
	if len(p.anchors()) != 5 {
		t.Errorf("anchors: %v, want five", p.anchors())
	}
}

// TestExamples runs the examples that are marked `sh run`: those of a page one
// after the other, each in an empty folder, with our programs in the PATH. The
// other marks are those of e2e's TestExamples; see CONTRIBUTING.md.
func TestExamples(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "./cmd/eclusa-edge")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the programs: %v\n%s", err, out)
	}
	n := 0
	for _, p := range readPages(t) {
		for _, b := range p.blocks {
			if !b.wellMarked() {
				t.Errorf("%s:%d: commands are marked %q, want `sh run`, `sh lab`, `sh lab edge` or `sh skip REASON`", p.path, b.line, b.info)
			}
			if b.info != "sh run" {
				continue
			}
			n++
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", b.code)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s:%d: the example fails: %v\n%s", p.path, b.line, err, out)
			}
		}
	}
	if n < 2 {
		t.Errorf("ran %d examples, want those of operations", n)
	}
}

// typed is how a block begins that people type.
var typed = regexp.MustCompile(`^\s*(\$ |(kubectl|helm|make|curl|go run|apt-get|systemctl|ssh|sudo) |eclusa-edge (--|pki|upgrade|withdraw))`)

// wellMarked reports whether a block of commands says who runs it, or why nobody
// does.
func (b block) wellMarked() bool {
	language, mark, _ := strings.Cut(b.info, " ")
	switch language {
	case "sh":
		reason, skipped := strings.CutPrefix(mark, "skip ")
		return mark == "run" || mark == "lab" || mark == "lab edge" || skipped && strings.Contains(reason, " ")
	case "", "bash", "shell", "console":
		return language == "" && !typed.MatchString(b.code)
	}
	return true
}

// TestMarks checks what counts as well marked.
func TestMarks(t *testing.T) {
	for info, want := range map[string]bool{
		"sh run": true, "sh lab": true, "sh lab edge": true, "sh skip there is no such cluster": true,
		"": false, "sh": false, "sh skip": false, "sh skip no": false, "sh labs": false, "bash": false, "yaml": true, "text": true,
	} {
		if got := (block{info: info, code: "kubectl get nodes\n"}).wellMarked(); got != want {
			t.Errorf("marked %q: %v, want %v", info, got, want)
		}
	}
	if !(block{code: "GET /v1/info\n"}).wellMarked() {
		t.Error("a block without commands needs no mark")
	}
}

// TestReasonsAreExplained finds every reason of a Condition in the operations
// manual.
func TestReasonsAreExplained(t *testing.T) {
	manual, err := os.ReadFile("docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, s := range readSources(t) {
		if s.test || s.pkg != "provider" && s.pkg != "ipam" {
			continue
		}
		ast.Inspect(s.ast, func(node ast.Node) bool {
			spec, ok := node.(*ast.ValueSpec)
			if !ok || len(spec.Names) != 1 || len(spec.Values) != 1 {
				return true
			}
			typed, _ := spec.Type.(*ast.Ident)
			value, ok := stringOf(spec.Values[0])
			name := spec.Names[0].Name
			if !ok || !strings.HasPrefix(name, "Reason") && (typed == nil || typed.Name != "Reason") || name == "ReasonBackendsUnknown" {
				return true
			}
			n++
			if !bytes.Contains(manual, []byte("`"+value+"`")) {
				t.Errorf("%s: reason %q is not explained in docs/operations.md", s.path, value)
			}
			return true
		})
	}
	if n < 25 {
		t.Errorf("found %d reasons; they are read wrongly", n)
	}
}

func stringOf(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(literal.Value)
	return s, err == nil
}

// TestLogKeys finds every key of log lines in their reference.
func TestLogKeys(t *testing.T) {
	reference, err := os.ReadFile("docs/reference/logs.md")
	if err != nil {
		t.Fatal(err)
	}
	good := regexp.MustCompile(`^[a-z][a-zA-Z]*$`)
	n := 0
	for _, s := range readSources(t) {
		if s.test || matchesAny([]string{"lab/...", "e2e", "lb/lbtest", "bench/..."}, s.pkg) {
			continue
		}
		ast.Inspect(s.ast, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, isIdent := f.X.(*ast.Ident)
			key, isString := stringOf(call.Args[0])
			if !isIdent || x.Name != "zap" || !isString {
				return true
			}
			n++
			if !good.MatchString(key) || !bytes.Contains(reference, []byte("`"+key+"`")) {
				t.Errorf("%s: key %q of a log line: must be like thisOne, and in docs/reference/logs.md", s.path, key)
			}
			return true
		})
	}
	if n < 100 {
		t.Errorf("found %d keys; they are read wrongly", n)
	}
}
