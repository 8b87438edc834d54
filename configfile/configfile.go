// Package configfile reads a configuration file strictly and says everything
// that is wrong with it, with line and key.
//
// The file is YAML. Its keys are the fields of a struct, by their tag "yaml".
package configfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// MaxBytes is how long a configuration file may be.
const MaxBytes = 1 << 20

// A Config is a pointer to a struct that a file can fill in. Each of its fields
// must be exported, have the tag "yaml", and be a string, an integer, a bool, an
// encoding.TextUnmarshaler, a struct of such fields, or a slice of these.
type Config interface {
	// Check complains to the file about what is wrong in meaning with what has
	// been read from it. It is not called if the file has no keys to speak of:
	// if it is not YAML, or no block.
	Check(f *File)
}

// A Defaulter is a list's entry that has defaults. They are set before it is
// read, so that keys which are missing keep them.
type Defaulter interface{ SetDefaults() }

// A Complaint is one thing that is wrong with a file.
type Complaint struct {
	Line int    // 1 is the first
	Key  string // such as clusters[0].nodeRanges[1]; empty is the whole
	Text string
}

// String returns the complaint as it follows the file's name and a colon.
func (c Complaint) String() string {
	if c.Key == "" {
		return fmt.Sprintf("%d: %s", c.Line, c.Text)
	}
	return fmt.Sprintf("%d: %s: %s", c.Line, c.Key, c.Text)
}

// Read reads the file into a configuration that has its defaults: keys that are
// not in the file, or have no value there, keep what they had. The error has a
// line for each complaint, in the form file:line: key: text. After an error the
// configuration must not be used.
func Read(path string, into Config) error {
	data, err := readBounded(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, c := range Decode(data, into) {
		errs = append(errs, fmt.Errorf("%s:%s", path, c))
	}
	return errors.Join(errs...)
}

func readBounded(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, MaxBytes+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxBytes {
		return nil, fmt.Errorf("%s: has more than the %d bytes that a configuration may have", path, MaxBytes)
	}
	return data, nil
}

// Decode does the same with the content of a file, and returns the complaints
// in the order of the lines.
func Decode(data []byte, into Config) []Complaint {
	f := &File{lines: make(map[string]int), broken: make(map[string]bool)}
	if f.decode(data, into) && !f.broken[""] {
		into.Check(f)
	}
	slices.SortStableFunc(f.complaints, func(a, b Complaint) int { return cmp.Compare(a.Line, b.Line) })
	return f.complaints
}

// A File is where the keys of a configuration stand, and what is wrong with them.
type File struct {
	lines      map[string]int  // by key
	broken     map[string]bool // keys whose values could not be read
	complaints []Complaint
}

// Complain adds a complaint about a key, unless the key or a block around it was
// complained about when it was read: the value is not what the file says then.
func (f *File) Complain(key, format string, args ...any) {
	for around, more := key, true; more; around, more = outside(around) {
		if f.broken[around] {
			return
		}
	}
	f.complaints = append(f.complaints, Complaint{Line: f.Line(key), Key: key, Text: fmt.Sprintf(format, args...)})
}

// OneOf complains unless the value of a key is one of those that are known.
func (f *File) OneOf(key, value string, known ...string) {
	if !slices.Contains(known, value) {
		f.Complain(key, "%q: must be %s", value, strings.Join(known, " or "))
	}
}

// Line returns the line of a key, or else of the nearest block around it; that
// of the whole file is the first.
func (f *File) Line(key string) int {
	for more := true; more && key != ""; key, more = outside(key) {
		if line, ok := f.lines[key]; ok {
			return line
		}
	}
	return 1
}

// outside returns the key of the block or list around a key, and whether there
// is any: that of the outermost key is empty.
func outside(key string) (string, bool) {
	return key[:max(strings.LastIndexAny(key, ".["), 0)], key != ""
}
