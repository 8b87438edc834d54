package release

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// checksumsFile is where people look for them.
const checksumsFile = "SHA256SUMS"

// WriteChecksums writes the checksums of files in dir, beside them, for
// `sha256sum --check`. It returns the file.
func WriteChecksums(dir string, files ...string) (string, error) {
	var lines []string
	for _, f := range files {
		sum, err := checksum(f)
		if err != nil {
			return "", err
		}
		name, err := filepath.Rel(dir, f)
		if err != nil || strings.HasPrefix(name, "..") {
			return "", fmt.Errorf("checksums of %q: file %q is not in it", dir, f)
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", sum, filepath.ToSlash(name)))
	}
	slices.SortFunc(lines, func(a, b string) int { return strings.Compare(a[2*sha256.Size:], b[2*sha256.Size:]) })
	out := filepath.Join(dir, checksumsFile)
	return out, os.WriteFile(out, []byte(strings.Join(lines, "")), 0o644) //nolint:gosec // what is released is for everybody
}

func checksum(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), errors.Join(err, f.Close())
}
