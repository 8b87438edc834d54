package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// An example is a block of a page that is marked for the lab, or a file that such
// a block needs. CONTRIBUTING.md tells how they are marked.
type example struct {
	page    string
	line    int // of the opening fence
	section string
	file    string // where to write it; empty if it is for the shell
	edge    bool   // on the edge, not on the operator's machine
	code    string
	exit    int     // what it ends with
	output  *string // what it prints; nil if the page does not show that
}

func (e example) String() string { return fmt.Sprintf("%s:%d", e.page, e.line) }

// readExamples reads the examples of all pages that users read, in their order.
func readExamples(t *testing.T) []example {
	t.Helper()
	var all []example
	for _, pattern := range []string{"README.md", "docs/*.md", "docs/reference/*.md", "charts/*/README.md"} {
		files, err := filepath.Glob(filepath.Join("..", pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("found no pages %s: %v", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			found, err := parseExamples(filepath.ToSlash(strings.TrimPrefix(file, "../")), string(text))
			if err != nil {
				t.Error(err)
			}
			all = append(all, found...)
		}
	}
	return all
}

// parseExamples reads those of one page.
func parseExamples(page, text string) (all []example, err error) {
	section, follows := "", false // follows: only blank lines stand between here and an example
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		mark, opens := strings.CutPrefix(line, "```")
		switch {
		case strings.HasPrefix(line, "#"):
			section, follows = strings.TrimLeft(line, "# "), false
		case line != "" && !opens:
			follows = false
		}
		if !opens {
			continue
		}
		e := example{page: page, line: i + 1, section: section}
		indent := strings.Index(lines[i], "`")
		for i++; i < len(lines) && strings.TrimSpace(lines[i]) != "```"; i++ {
			e.code += lines[i][min(indent, len(lines[i])):] + "\n"
		}
		language, rest, _ := strings.Cut(mark, " ")
		switch {
		case language == "text" && follows:
			last := &all[len(all)-1]
			last.output = &e.code
			if last.exit, err = exitOf(rest); err != nil {
				return all, fmt.Errorf("%s: %w", e, err)
			}
		case mark == "sh lab", mark == "sh lab edge":
			e.edge = mark == "sh lab edge"
			all = append(all, e)
		case language == "yaml" && rest != "":
			e.file, e.edge = rest, strings.HasPrefix(rest, "/")
			all = append(all, e)
		}
		follows = language == "sh" && e.file == "" && len(all) > 0 && all[len(all)-1].line == e.line
	}
	return all, nil
}

// exitOf reads "exit CODE", or nothing.
func exitOf(mark string) (int, error) {
	if mark == "" {
		return 0, nil
	}
	code, ok := strings.CutPrefix(mark, "exit ")
	n, err := strconv.Atoi(code)
	if !ok || err != nil || n <= 0 {
		return 0, fmt.Errorf("output is marked %q, want `text` or `text exit CODE`", mark)
	}
	return n, nil
}

// matches reports whether an output is as the page shows it: "..." stands for
// anything within a line, alone in a line for any lines, and blanks for any
// blanks.
func matches(shown, got string) bool {
	var pattern strings.Builder
	for line := range strings.Lines(strings.Trim(shown, "\n") + "\n") {
		line = strings.TrimSpace(line)
		if line == "..." {
			pattern.WriteString(`(?:.*\n)*`)
			continue
		}
		line = regexp.QuoteMeta(line)
		line = strings.ReplaceAll(line, `\.\.\.`, `.*`)
		pattern.WriteString(`[ \t]*` + regexp.MustCompile(`[ \t]+`).ReplaceAllString(line, `[ \t]+`) + `[ \t]*\n`)
	}
	return regexp.MustCompile(`^` + pattern.String() + `$`).MatchString(strings.Trim(got, "\n") + "\n")
}

// The notation means what CONTRIBUTING.md says.
func TestExamplesAreRead(t *testing.T) {
	got, err := parseExamples("p.md", "# One\n```sh lab\none\n```\n\n```text exit 3\nsays\n```\n## Two\n1. x\n\n   ```sh lab edge\n   two\n     deep\n   ```\n"+
		"not its output:\n```text\nno\n```\n```yaml /etc/f\nk: v\n```\n```sh run\nthree\n```\n```sh skip for a reason\nfour\n```\n")
	if err != nil {
		t.Fatal(err)
	}
	var short []string
	for _, e := range got {
		output := "-"
		if e.output != nil {
			output = *e.output
		}
		short = append(short, fmt.Sprintf("%s %s %q edge=%v %q exit=%d %q", e, e.section, e.file, e.edge, e.code, e.exit, output))
	}
	want := []string{
		`p.md:2 One "" edge=false "one\n" exit=3 "says\n"`,
		`p.md:12 Two "" edge=true "two\n  deep\n" exit=0 "-"`,
		`p.md:20 Two "/etc/f" edge=true "k: v\n" exit=0 "-"`,
	}
	if strings.Join(short, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(short, "\n"), strings.Join(want, "\n"))
	}
	if _, err := parseExamples("p.md", "```sh lab\nx\n```\n```text fails\n```\n"); err == nil {
		t.Error("output marked `text fails`: no error")
	}
	const shown = "NAME  AGE\nweb   ...s\n...\nend\n"
	for got, want := range map[string]bool{
		"NAME   AGE\nweb      12s\nend\n": true, "NAME AGE\nweb 1s\nmore\nof it\nend": true,
		"NAME AGE\nweb 1m\nend\n": false, "NAME AGE\nend\n": false, "NAME AGE\nweb 1s\nend\nmore\n": false,
	} {
		if matches(shown, got) != want {
			t.Errorf("%q is shown as %q: %v, want %v", got, shown, !want, want)
		}
	}
}
