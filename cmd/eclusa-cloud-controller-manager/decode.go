package main

import (
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// complaint is one thing that is wrong with the configuration file.
type complaint struct {
	line int    // 1 is the first
	key  string // such as nodeAddressTypes[1]
	text string
}

// String returns the complaint as it follows the file's name and a colon.
func (c complaint) String() string {
	if c.key == "" {
		return fmt.Sprintf("%d: %s", c.line, c.text)
	}
	return fmt.Sprintf("%d: %s: %s", c.line, c.key, c.text)
}

// decoding reads YAML into structs of strings, lists of strings and structs,
// strictly. It remembers where each key stood, so that what is wrong with a value
// is told with its line too.
type decoding struct {
	lines      map[string]int // by key
	complaints []complaint
	fatal      bool // it is not YAML at all
}

// syntaxLine finds the line in the parser's errors.
var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// decode reads data into the struct that into points to. Keys that are missing
// keep the value that they had.
func decode(data []byte, into any) *decoding {
	d := &decoding{lines: make(map[string]int)}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		line, text := 1, err.Error()
		if m := syntaxLine.FindStringSubmatch(text); m != nil {
			if n, err := strconv.Atoi(m[1]); err == nil {
				line = n
			}
			text = m[2]
		}
		d.complain(line, "", "is not YAML: %s", text)
		d.fatal = true
		return d
	}
	if len(doc.Content) > 0 {
		d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
	}
	return d
}

// complain notes what is wrong. A key that is not in the file is complained about
// on the first line.
func (d *decoding) complain(line int, key, format string, args ...any) {
	d.complaints = append(d.complaints, complaint{max(line, 1), key, fmt.Sprintf(format, args...)})
}

func (d *decoding) value(n *yaml.Node, v reflect.Value, key string) {
	d.lines[key] = n.Line
	switch {
	case n.Kind == yaml.AliasNode:
		d.complain(n.Line, key, "aliases are not allowed: write the value out")
	case n.Tag == "!!null": // like a key that is missing
	case v.Kind() == reflect.Struct:
		d.block(n, v, key)
	case v.Kind() == reflect.Slice:
		d.list(n, v, key)
	case n.Kind != yaml.ScalarNode || n.Tag != "!!str":
		d.complain(n.Line, key, "must be a single text%s", quoteHint(n))
	default:
		v.SetString(n.Value)
	}
}

// quoteHint helps those who meant a text and wrote a number.
func quoteHint(n *yaml.Node) string {
	if n.Kind == yaml.ScalarNode {
		return fmt.Sprintf("; write it as %q", n.Value)
	}
	return ""
}

func (d *decoding) block(n *yaml.Node, v reflect.Value, key string) {
	names := keysOf(v.Type())
	if n.Kind != yaml.MappingNode {
		d.complain(n.Line, key, "must be a block with the keys %s", strings.Join(names, ", "))
		return
	}
	first := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		name := n.Content[i]
		path := strings.TrimPrefix(key+"."+name.Value, ".")
		if line, twice := first[name.Value]; twice {
			d.complain(name.Line, path, "is given twice, first on line %d", line)
			continue
		}
		first[name.Value] = name.Line
		at := -1
		for j, known := range names {
			if known == name.Value {
				at = j
			}
		}
		if at < 0 {
			d.complain(name.Line, path, "is not a known key: here are %s%s", strings.Join(names, ", "), didYouMean(name.Value, names))
			continue
		}
		d.value(n.Content[i+1], v.Field(at), path)
	}
}

func (d *decoding) list(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.SequenceNode {
		d.complain(n.Line, key, "must be a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, item := range n.Content {
		d.value(item, v.Index(i), fmt.Sprintf("%s[%d]", key, i))
	}
}

// keysOf returns the names of a struct's keys in their order.
func keysOf(t reflect.Type) []string {
	var names []string
	for i := range t.NumField() {
		names = append(names, t.Field(i).Tag.Get("yaml"))
	}
	return names
}

// didYouMean returns a question for the known name that is nearest to one that
// is not, if any is near.
func didYouMean(name string, known []string) string {
	best, least := "", len(name)/2+1
	for _, k := range known {
		if n := distance(strings.ToLower(name), strings.ToLower(k)); n < least {
			best, least = k, n
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the letters to insert, remove or replace to get from a to b.
func distance(a, b string) int {
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := range len(a) {
		next := []int{i + 1}
		for j := range len(b) {
			cost := last[j]
			if a[i] != b[j] {
				cost++
			}
			next = append(next, min(cost, last[j+1]+1, next[j]+1))
		}
		last = next
	}
	return last[len(b)]
}
