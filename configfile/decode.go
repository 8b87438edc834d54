package configfile

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/eclusa-lb/eclusa/spelling"
)

// decode returns false if the file is not YAML at all.
func (f *File) decode(data []byte, into Config) bool {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return true
	} else if err != nil {
		f.syntax(err, data)
		return false
	}
	if err := decoder.Decode(&next); err == nil {
		f.refuse(next.Line, "", "a second document begins here; all keys must be in one")
		return false
	} else if !errors.Is(err, io.EOF) {
		f.syntax(err, data)
		return false
	}
	f.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	return true
}

// syntaxError finds the line in the errors of package yaml.
var syntaxError = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)`)

// countedFromZero are the errors for which package yaml says one line too few:
// those of its parser, not of its scanner.
var countedFromZero = regexp.MustCompile(`^did not find expected (',' or|'-' ind|<doc|key$|node content)|^found (duplicate %|incompatible|undefined)`)

func (f *File) syntax(err error, data []byte) {
	m := syntaxError.FindStringSubmatch(err.Error())
	line, atoiErr := strconv.Atoi(m[1])
	switch {
	case atoiErr != nil:
		line = 1 // of the first line it says nothing
	case countedFromZero.MatchString(m[2]):
		line++
	}
	last := bytes.Count(bytes.TrimSuffix(data, []byte("\n")), []byte("\n")) + 1
	f.refuse(min(line, last), "", "is not YAML: %s", m[2])
}

// refuse complains about a key whose value cannot be read.
func (f *File) refuse(line int, key, format string, args ...any) {
	f.broken[key] = true
	f.complaints = append(f.complaints, Complaint{Line: max(line, 1), Key: key, Text: fmt.Sprintf(format, args...)})
}

func (f *File) value(n *yaml.Node, v reflect.Value, key string) {
	if _, ok := f.lines[key]; !ok { // that of the key itself, if it has one
		f.lines[key] = n.Line
	}
	switch u, isText := v.Addr().Interface().(encoding.TextUnmarshaler); {
	case n.Kind == yaml.AliasNode:
		f.refuse(n.Line, key, "aliases are not allowed; write the value out")
	case isNull(n): // asks for the default
	case isText:
		f.text(n, u, key)
	case v.Kind() == reflect.Struct:
		f.block(n, v, key)
	case v.Kind() == reflect.Slice:
		f.list(n, v, key)
	default:
		f.scalar(n, v, key)
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

func (f *File) block(n *yaml.Node, v reflect.Value, key string) {
	known := keysOf(v.Type())
	if n.Kind != yaml.MappingNode {
		f.refuse(n.Line, key, "must be a block with the keys %s", strings.Join(known, ", "))
		return
	}
	first := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i]
		if name.Kind != yaml.ScalarNode {
			f.refuse(name.Line, key, "has a key that is not a single text; known here are %s", strings.Join(known, ", "))
			continue
		}
		path := inside(key, name.Value)
		if line, twice := first[name.Value]; twice {
			f.refuse(name.Line, path, "given twice; the first is on line %d", line)
			continue
		}
		first[name.Value] = name.Line
		at := slices.Index(known, name.Value)
		if at < 0 {
			f.refuse(name.Line, path, "unknown key; %s", spelling.Hint(name.Value, known))
			continue
		}
		f.lines[path] = name.Line
		f.value(n.Content[i+1], v.Field(at), path)
	}
}

// plain are names of keys that cannot be mistaken for several, or several lines.
var plain = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// inside returns the key of what has a name inside a block.
func inside(key, name string) string {
	if !plain.MatchString(name) {
		name = strconv.Quote(name)
	}
	if key == "" {
		return name
	}
	return key + "." + name
}

func (f *File) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		f.refuse(n.Line, key, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		entry, path := v.Index(i), fmt.Sprintf("%s[%d]", key, i)
		if d, ok := entry.Addr().Interface().(Defaulter); ok {
			d.SetDefaults()
		}
		if isNull(item) { // a list says which entries there are, so there is no default
			f.refuse(item.Line, path, "has no value; give it one or remove it")
			continue
		}
		f.value(item, entry, path)
	}
}

func (f *File) text(n *yaml.Node, into encoding.TextUnmarshaler, key string) {
	if n.Kind != yaml.ScalarNode {
		f.refuse(n.Line, key, "must be a single value")
		return
	}
	if err := into.UnmarshalText([]byte(n.Value)); err != nil {
		f.refuse(n.Line, key, "%s", explain(into, n.Value, err))
	}
}

// explain says what would have been right in place of a value that could not be
// read.
func explain(into encoding.TextUnmarshaler, value string, err error) string {
	switch into.(type) {
	case *netip.AddrPort:
		return fmt.Sprintf("%q: must be an address and a port such as 192.0.2.10:7443 or [2001:db8::1]:7443", value)
	case *netip.Prefix:
		if a, perr := netip.ParseAddr(value); perr == nil {
			return fmt.Sprintf("%q: must be a range such as 192.0.2.0/24; for this single address write %s/%d", value, a, a.BitLen())
		}
		return fmt.Sprintf("%q: must be a range such as 192.0.2.0/24 or 2001:db8::/64", value)
	}
	if strings.Contains(err.Error(), strconv.Quote(value)) {
		return err.Error()
	}
	return fmt.Sprintf("%q: %v", value, err)
}

func (f *File) scalar(n *yaml.Node, v reflect.Value, key string) {
	switch {
	case v.Kind() == reflect.String:
		f.str(n, v, key)
	case n.Kind != yaml.ScalarNode:
		f.refuse(n.Line, key, "must be a single value")
	case v.Kind() == reflect.Bool:
		if n.Tag != "!!bool" {
			f.refuse(n.Line, key, "%q: must be true or false", n.Value)
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case v.CanInt():
		i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
		switch {
		case errors.Is(err, strconv.ErrRange):
			f.refuse(n.Line, key, "%q: is beyond what any number here can be", n.Value)
		case err != nil:
			f.refuse(n.Line, key, "%q: must be a whole number", n.Value)
		default:
			v.SetInt(i)
		}
	default:
		panic("configuration key " + key + " is a " + v.Type().String() + ", which cannot be read from a file")
	}
}

// str wants a text to look like one: what YAML takes for a number or a date may
// be read back as another text than was written.
func (f *File) str(n *yaml.Node, v reflect.Value, key string) {
	switch {
	case n.Kind != yaml.ScalarNode:
		f.refuse(n.Line, key, "must be a single text")
	case n.Tag != "!!str":
		f.refuse(n.Line, key, "must be a single text; write it as %q", n.Value)
	default:
		v.SetString(n.Value)
	}
}

// keysOf returns the names of a struct's keys in their order.
func keysOf(t reflect.Type) []string {
	names := make([]string, t.NumField())
	for i := range names {
		names[i] = t.Field(i).Tag.Get("yaml")
	}
	return names
}
