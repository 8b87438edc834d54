package main

import (
	"encoding"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A complaint is one thing that is wrong with a configuration file.
type complaint struct {
	Line int    // 1 is the first; 0 if it belongs to no line
	Key  string // such as clusters[0].nodeRanges[1]
	Text string
}

func (c complaint) String() string {
	s := c.Text
	if c.Key != "" {
		s = c.Key + ": " + s
	}
	if c.Line > 0 {
		s = fmt.Sprintf("line %d: %s", c.Line, s)
	}
	return s
}

// A decoder reads YAML into structs, strictly, and remembers on which line each
// key stood, so that what is wrong with a value can be told with its line too.
type decoder struct {
	lines      map[string]int
	complaints []complaint
}

// defaulter fills in the defaults of a list's entry before it is read.
type defaulter interface{ setDefaults() }

func newDecoder() *decoder { return &decoder{lines: make(map[string]int)} }

// decode reads data into the struct that into points to. Keys that are not in
// data keep the value they had. It returns false if data is not YAML at all.
func (d *decoder) decode(data []byte, into any) bool {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		d.complaints = append(d.complaints, syntaxComplaint(err))
		return false
	}
	if len(doc.Content) > 0 {
		d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	}
	return true
}

// syntaxComplaint splits the line off the parser's "yaml: line 3: text".
func syntaxComplaint(err error) complaint {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if number, after, ok := strings.Cut(rest, ": "); ok {
			if line, err := strconv.Atoi(number); err == nil {
				return complaint{Line: line, Text: "not YAML: " + after}
			}
		}
	}
	return complaint{Text: "not YAML: " + text}
}

func (d *decoder) complain(n *yaml.Node, key, format string, args ...any) {
	d.complaints = append(d.complaints, complaint{Line: n.Line, Key: key, Text: fmt.Sprintf(format, args...)})
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	d.lines[key] = n.Line
	if n.Kind == yaml.AliasNode {
		d.complain(n, key, "aliases are not understood here; write the value out")
		return
	}
	if n.Tag == "!!null" {
		return // a key without a value asks for the default
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		d.text(n, u, key)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, key)
	case reflect.Slice:
		d.list(n, v, key)
	default:
		d.scalar(n, v, key)
	}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		d.complain(n, key, "must be a block of keys, one of %s", strings.Join(keysOf(v.Type()), ", "))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name, value := n.Content[i], n.Content[i+1]
		path := name.Value
		if key != "" {
			path = key + "." + name.Value
		}
		if line, ok := seen[name.Value]; ok {
			d.complain(name, path, "given twice; the first is on line %d", line)
			continue
		}
		seen[name.Value] = name.Line
		field, ok := fieldOf(v, name.Value)
		if !ok {
			d.complain(name, path, "unknown key%s", suggestion(name.Value, keysOf(v.Type())))
			continue
		}
		d.value(value, field, path)
		d.lines[path] = name.Line
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.complain(n, key, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		e := v.Index(i)
		if x, ok := e.Addr().Interface().(defaulter); ok {
			x.setDefaults()
		}
		d.value(item, e, fmt.Sprintf("%s[%d]", key, i))
	}
}

func (d *decoder) text(n *yaml.Node, u encoding.TextUnmarshaler, key string) {
	if n.Kind != yaml.ScalarNode {
		d.complain(n, key, "must be a single value")
		return
	}
	if err := u.UnmarshalText([]byte(n.Value)); err != nil {
		d.complain(n, key, "%s", explain(u, n.Value, err))
	}
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.ScalarNode {
		d.complain(n, key, "must be a single value")
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(n.Value)
		if err != nil || n.Tag != "!!bool" {
			d.complain(n, key, "%q: must be true or false", n.Value)
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int64:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if err != nil || i > math.MaxInt32*int64(1024) {
			d.complain(n, key, "%q: must be a whole number", n.Value)
			return
		}
		v.SetInt(i)
	default:
		panic("configuration key " + key + " has a type that the decoder does not know")
	}
}

// keysOf returns the names of a struct's keys in their order.
func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		keys = append(keys, t.Field(i).Tag.Get("yaml"))
	}
	return keys
}

func fieldOf(v reflect.Value, name string) (reflect.Value, bool) {
	i := slices.Index(keysOf(v.Type()), name)
	if i < 0 {
		return reflect.Value{}, false
	}
	return v.Field(i), true
}

// suggestion names the known key that is most like the unknown one, or all.
func suggestion(name string, known []string) string {
	best, least := "", len(name)/2+1
	for _, k := range known {
		if n := distance(strings.ToLower(name), strings.ToLower(k)); n < least {
			best, least = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; known here are " + strings.Join(known, ", ")
}

// distance is the number of letters to insert, delete or replace between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
