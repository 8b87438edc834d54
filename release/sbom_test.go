package release

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"testing"
	"time"
)

// TestSBOM compares the bill of a real program with what is in it.
func TestSBOM(t *testing.T) {
	s, program := edgeProgram(t)
	file := filepath.Join(t.TempDir(), "sbom.json")
	if err := WriteSBOM(file, program, s); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var b bom
	if err := json.Unmarshal(data, &b); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(b.SerialNumber) {
		t.Errorf("serial number %q: is not a UUID", b.SerialNumber)
	}
	content, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	if main := b.Metadata.Component; main.Name != "eclusa-edge" || main.Version != s.Version || main.Hashes[0].Content != hex.EncodeToString(sum[:]) {
		t.Errorf("what it is the bill of: got %+v", main)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	versions := make(map[string]string)
	refs := make(map[string]bool)
	for _, c := range b.Components {
		versions[c.Name] = c.Version
		if refs[c.Ref] {
			t.Errorf("component %q: is there twice", c.Ref)
		}
		refs[c.Ref] = true
	}
	if len(info.Deps) < 10 || len(b.Components) != len(info.Deps)+1 {
		t.Errorf("got %d components for %d modules; want one for each and Go itself", len(b.Components), len(info.Deps))
	}
	for _, m := range info.Deps {
		if versions[m.Path] != m.Version {
			t.Errorf("module %s: got version %q; want %q", m.Path, versions[m.Path], m.Version)
		}
	}
	if got := "go" + versions["stdlib"]; got != info.GoVersion {
		t.Errorf("standard library: got %q; want %q", got, info.GoVersion)
	}
	if got := len(b.Dependencies[0].DependsOn); got != len(b.Components) {
		t.Errorf("dependencies of the program: got %d; want all %d", got, len(b.Components))
	}
}

func TestSBOMOfReplacedModule(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.0", Deps: []*debug.Module{
		{Path: "example.test/Old", Version: "v1.0.0", Replace: &debug.Module{Path: "example.test/New", Version: "v2.0.0+incompatible", Sum: "h1:x="}},
	}}
	b := newBOM("p", [32]byte{}, info, Source{Time: time.Unix(0, 0).UTC()})
	got := b.Components[1]
	if got.Name != "example.test/New" || got.PURL != "pkg:golang/example.test/new@v2.0.0%2Bincompatible" || got.Properties[0].Value != "h1:x=" {
		t.Errorf("got %+v; want the module that has taken its place", got)
	}
}

func TestSBOMComplains(t *testing.T) {
	file := filepath.Join(t.TempDir(), "text")
	write(t, file, "not a program")
	if err := WriteSBOM(file+".json", file, Source{}); err == nil {
		t.Error("of a text: got no error")
	}
}
