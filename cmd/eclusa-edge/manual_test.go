package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

//go:generate go test -run ^TestManual$ . -update

var update = flag.Bool("update", false, "rewrite the golden files, manual pages and completions")

// manualDir has what packages install beside the program.
const manualDir = "../../release/nfpm/generated"

// TestManual compares the manual pages and shell completions that are packaged
// with those of the command. They are made here, so that the program itself needs
// no renderer.
func TestManual(t *testing.T) {
	want := manual(t)
	if *update {
		if err := os.RemoveAll(manualDir); err != nil {
			t.Fatal(err)
		}
		for name, data := range want {
			file := filepath.Join(manualDir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := make(map[string]bool)
	err := filepath.WalkDir(manualDir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(manualDir, path)
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if got[name] = true; !bytes.Equal(data, want[name]) {
			t.Errorf("%s: is not what the command says now; run make generate", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for name := range want {
		if !got[name] {
			t.Errorf("%s: is missing; run make generate", filepath.Join(manualDir, name))
		}
	}
}

// manual renders everything, by file name.
func manual(t *testing.T) map[string][]byte {
	t.Helper()
	root := newCommand()
	root.DisableAutoGenTag = true
	files := make(map[string][]byte)
	for _, shell := range []struct {
		name     string
		generate func(*bytes.Buffer) error
	}{
		{"eclusa-edge.bash", func(b *bytes.Buffer) error { return root.GenBashCompletionV2(b, true) }},
		{"_eclusa-edge", func(b *bytes.Buffer) error { return root.GenZshCompletion(b) }},
		{"eclusa-edge.fish", func(b *bytes.Buffer) error { return root.GenFishCompletion(b, true) }},
	} {
		var b bytes.Buffer
		if err := shell.generate(&b); err != nil {
			t.Fatal(err)
		}
		files[filepath.Join("completion", shell.name)] = b.Bytes()
	}
	root.InitDefaultCompletionCmd()
	pages(t, root, files)
	return files
}

// pages renders the page of a command and those of the commands below it.
func pages(t *testing.T, c *cobra.Command, files map[string][]byte) {
	t.Helper()
	if c.Hidden || c.Name() == "help" || c.Parent() != nil && c.Parent().Name() == "completion" {
		return
	}
	name := strings.ReplaceAll(c.CommandPath(), " ", "-")
	var b bytes.Buffer
	header := &doc.GenManHeader{Title: strings.ToUpper(name), Section: "8", Source: "eclusa", Manual: "eclusa"}
	if err := doc.GenMan(c, header, &b); err != nil {
		t.Fatal(err)
	}
	// A page has no date: it would change whenever it is rendered.
	page := strings.Replace(b.String(), fmt.Sprintf("%q", header.Date.Format("Jan 2006")), `""`, 1)
	files[filepath.Join("man", name+".8")] = []byte(page)
	for _, sub := range c.Commands() {
		pages(t, sub, files)
	}
}
