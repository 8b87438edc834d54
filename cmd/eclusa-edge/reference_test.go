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
)

//go:generate go test -run ^TestReferencePage$ . -update

const referencePage = "../../docs/reference/eclusa-edge.md"

// TestReferencePage fills in the page's markers from the command, of which the
// manual pages are made too, and from the commented configuration file.
func TestReferencePage(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	marker := regexp.MustCompile(`(?s)<!-- (help|file)([^>]*?) -->\n.*?<!-- end -->`)
	var shown []string
	want := marker.ReplaceAllStringFunc(string(page), func(block string) string {
		m := marker.FindStringSubmatch(block)
		language, text := "", ""
		if m[1] == "help" {
			text = help(t, strings.Fields(m[2]))
			shown = append(shown, strings.TrimSpace(m[2]))
		} else {
			language, text = "yaml", reference
		}
		return fmt.Sprintf("<!-- %s%s -->\n```%s\n%s\n```\n<!-- end -->", m[1], m[2], language, strings.TrimRight(text, "\n"))
	})
	if !strings.Contains(want, reference) {
		t.Error("the page does not have the configuration file")
	}
	for name := range manual(t) {
		name, isPage := strings.CutPrefix(name, "man/eclusa-edge")
		if name = strings.TrimSuffix(strings.TrimPrefix(name, "-"), ".8"); isPage && !slices.Contains(shown, strings.ReplaceAll(name, "-", " ")) {
			t.Errorf("the page does not have the help of %q, which has a manual page", name)
		}
	}
	if *update {
		if err := os.WriteFile(referencePage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(page), want); diff != "" {
		t.Errorf("%s is not current; run make generate (-page +program):\n%s", referencePage, diff)
	}
}

// help returns what a command says about itself.
func help(t *testing.T, args []string) string {
	t.Helper()
	var out bytes.Buffer
	c := newCommand()
	c.SetOut(&out)
	c.SetArgs(append(args, "--help"))
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}
