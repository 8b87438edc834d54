package main

import (
	"bytes"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

//go:generate go test -run ^TestReferencePage$ . -update

const referencePage = "../../docs/reference/eclusa-cloud-controller-manager.md"

// TestReferencePage fills in the page's markers from the command and from the
// commented configuration file.
func TestReferencePage(t *testing.T) {
	page, err := os.ReadFile(referencePage)
	if err != nil {
		t.Fatal(err)
	}
	texts := map[string]string{"help": help(t), "file": reference}
	languages := map[string]string{"file": "yaml"}
	marker := regexp.MustCompile(`(?s)<!-- (help|file) -->\n.*?<!-- end -->`)
	want := marker.ReplaceAllStringFunc(string(page), func(block string) string {
		name := marker.FindStringSubmatch(block)[1]
		return fmt.Sprintf("<!-- %s -->\n```%s\n%s\n```\n<!-- end -->", name, languages[name], strings.TrimRight(texts[name], "\n"))
	})
	for name, text := range texts {
		if !strings.Contains(want, strings.TrimRight(text, "\n")) {
			t.Errorf("the page does not have the %s", name)
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

// help returns what the command says about itself, without the feature gates of
// Kubernetes' libraries, which are no business of ours and change with them.
func help(t *testing.T) string {
	t.Helper()
	var out bytes.Buffer
	c := newCommand()
	c.SetOut(&out)
	c.SetArgs([]string{"--help"})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	gate := regexp.MustCompile(`(?m)^ +\w+=true\|false \(.*\)\n`)
	blank := regexp.MustCompile(`(?m)[ \t]+$`)
	return blank.ReplaceAllString(gate.ReplaceAllString(out.String(), ""), "")
}
