package release

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// The parts of CycloneDX 1.6 that we have something to say about.
type (
	bom struct {
		Schema       string          `json:"$schema"`
		Format       string          `json:"bomFormat"`
		SpecVersion  string          `json:"specVersion"`
		SerialNumber string          `json:"serialNumber"`
		Version      int             `json:"version"`
		Metadata     bomMetadata     `json:"metadata"`
		Components   []bomComponent  `json:"components"`
		Dependencies []bomDependency `json:"dependencies"`
	}
	bomMetadata struct {
		Timestamp string       `json:"timestamp"`
		Component bomComponent `json:"component"`
	}
	bomComponent struct {
		Type       string        `json:"type"`
		Ref        string        `json:"bom-ref"`
		Name       string        `json:"name"`
		Version    string        `json:"version"`
		Hashes     []bomHash     `json:"hashes,omitempty"`
		Licenses   []bomLicense  `json:"licenses,omitempty"`
		PURL       string        `json:"purl"`
		Properties []bomProperty `json:"properties,omitempty"`
	}
	bomHash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	bomLicense struct {
		License struct {
			ID string `json:"id"`
		} `json:"license"`
	}
	bomProperty struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	bomDependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn,omitempty"`
	}
)

// WriteSBOM writes the bill of materials of a program to file, as CycloneDX JSON:
// the Go modules that are linked into it, as the program itself tells, and the
// Go that has compiled it.
func WriteSBOM(file, program string, s Source) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return fmt.Errorf("bill of materials of %q: %w", program, err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	b := newBOM(filepath.Base(program), sha256.Sum256(data), info, s)
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(out, '\n'), 0o644) //nolint:gosec // what is released is for everybody
}

func newBOM(name string, sum [sha256.Size]byte, info *debug.BuildInfo, s Source) bom {
	main := bomComponent{
		Type: "application", Ref: name, Name: name, Version: s.Version,
		Hashes: []bomHash{{"SHA-256", hex.EncodeToString(sum[:])}}, Licenses: make([]bomLicense, 1),
		PURL:       purl(info.Main.Path, s.Version) + "#cmd/" + name,
		Properties: []bomProperty{{"vcs.revision", s.Revision}},
	}
	main.Licenses[0].License.ID = "Apache-2.0"
	for _, setting := range info.Settings {
		if slices.Contains([]string{"GOOS", "GOARCH", "CGO_ENABLED"}, setting.Key) {
			main.Properties = append(main.Properties, bomProperty{setting.Key, setting.Value})
		}
	}
	b := bom{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", Format: "CycloneDX", SpecVersion: "1.6",
		SerialNumber: serial(sum), Version: 1,
		Metadata:   bomMetadata{s.Time.Format(time.RFC3339), main},
		Components: []bomComponent{library("stdlib", strings.TrimPrefix(info.GoVersion, "go"), "")},
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		b.Components = append(b.Components, library(m.Path, m.Version, m.Sum))
	}
	all := bomDependency{Ref: main.Ref}
	b.Dependencies = []bomDependency{all}
	for _, c := range b.Components {
		b.Dependencies[0].DependsOn = append(b.Dependencies[0].DependsOn, c.Ref)
		b.Dependencies = append(b.Dependencies, bomDependency{Ref: c.Ref})
	}
	return b
}

func library(path, version, sum string) bomComponent {
	c := bomComponent{Type: "library", Ref: purl(path, version), Name: path, Version: version, PURL: purl(path, version)}
	if sum != "" {
		// A hash of file names and hashes, which CycloneDX has no name for.
		c.Properties = []bomProperty{{"go.sum", sum}}
	}
	return c
}

// purl is the name of a Go module in the words of package-url.
func purl(path, version string) string {
	return "pkg:golang/" + strings.ToLower(path) + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// serial makes a UUID (of version 8, RFC 9562) of a hash, so that the same program
// has the same bill.
func serial(sum [sha256.Size]byte) string {
	u := sum[:16]
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:16])
}
