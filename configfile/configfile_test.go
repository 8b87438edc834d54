package configfile

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// garden has a key of every kind that a file can fill in.
type garden struct {
	Name   string         `yaml:"name"`
	Door   netip.AddrPort `yaml:"door"`
	Open   bool           `yaml:"open"`
	Trees  int            `yaml:"trees"`
	Small  int8           `yaml:"small"`
	Rest   pause          `yaml:"rest"`
	Fence  fence          `yaml:"fence"`
	Beds   []bed          `yaml:"beds"`
	Labels []string       `yaml:"labels"`
}

type fence struct {
	Colour string         `yaml:"colour"`
	Ranges []netip.Prefix `yaml:"ranges"`
}

type bed struct {
	Plant string `yaml:"plant"`
	Rows  int    `yaml:"rows"`
}

func (b *bed) SetDefaults() { b.Rows = 3 }

type pause time.Duration

func (p *pause) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	*p = pause(d)
	return err
}

func (g *garden) Check(f *File) {
	if g.Name == "" {
		f.Complain("name", "missing")
	}
	f.OneOf("fence.colour", g.Fence.Colour, "green", "brown")
	for _, b := range g.Beds {
		if b.Plant == "" {
			f.Complain("beds[0].plant", "missing")
		}
	}
}

func newGarden() garden { return garden{Trees: 5, Open: true, Fence: fence{Colour: "green"}} }

func TestDecode(t *testing.T) {
	got := newGarden()
	complaints := Decode([]byte(`# a comment
name: "17"
door: '[2001:db8::1]:80'
open: False
trees: -2
small: 127
rest: 90s
fence:
beds:
- plant: beans
- {plant: peas, rows: 8}
labels: [a, ~text]
`), &got)
	if len(complaints) > 0 {
		t.Fatalf("complaints: got %v; want none", complaints)
	}
	want := garden{
		Name: "17", Door: netip.MustParseAddrPort("[2001:db8::1]:80"), Trees: -2, Small: 127, Rest: pause(90 * time.Second),
		Fence: fence{Colour: "green"}, Beds: []bed{{"beans", 3}, {"peas", 8}}, Labels: []string{"a", "~text"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestComplaints(t *testing.T) {
	const good = "name: a\n"
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"nothing wrong", good, nil},
		{"empty", "", []string{"1: name: missing"}},
		{"only a comment", "# name: a\n", []string{"1: name: missing"}},
		{"only a separator", "---\n", []string{"1: name: missing"}},
		{"no value", good + "trees:\nfence: {colour: }\n", nil},
		{"no value where one is wanted", "trees: 1\nname: ~\n", []string{"2: name: missing"}},
		{"unknown key", good + "tress: 1\n", []string{`2: tress: unknown key; did you mean "trees"?`}},
		{"unknown key below", good + "beds:\n- plnat: x\n  plant: x\n", []string{`3: beds[0].plnat: unknown key; did you mean "plant"?`}},
		{"unknown key far from all", good + "fence: {xyzzy: 1}\n", []string{"2: fence.xyzzy: unknown key; known here are colour, ranges"}},
		{"key that looks like a path", good + "fence.colour: red\n", []string{`2: "fence.colour": unknown key; known here are name, door, open, trees, small, rest, fence, beds, labels`}},
		{"key of two lines", good + "\"a\\nb\": red\n", []string{`2: "a\nb": unknown key; known here are name, door, open, trees, small, rest, fence, beds, labels`}},
		{"key that is a list", good + "fence:\n  ? [a]\n  : b\n", []string{"3: fence: has a key that is not a single text; known here are colour, ranges"}},
		{"key that is an alias", good + "labels: [&x trees]\n*x : 7\n", []string{"3: has a key that is not a single text; known here are name, door, open, trees, small, rest, fence, beds, labels"}},
		{"merge key", "name: &x a\n<<: {trees: 1}\n", []string{`2: "<<": unknown key; known here are name, door, open, trees, small, rest, fence, beds, labels`}},
		{"given twice", good + "trees: 1\nname: b\nname: c\n", []string{"3: name: given twice; the first is on line 1", "4: name: given twice; the first is on line 1"}},
		{"alias", "name: &x a\nlabels: *x\nbeds: [*x]\n", []string{
			"2: labels: aliases are not allowed; write the value out", "3: beds[0]: aliases are not allowed; write the value out",
		}},
		{"alias of nothing", "name: *x\n", []string{"1: is not YAML: unknown anchor 'x' referenced"}},
		{"entry without value", good + "beds: [~]\nlabels:\n- a\n-\n", []string{
			"2: beds[0]: has no value; give it one or remove it", "5: labels[1]: has no value; give it one or remove it",
		}},
		{"number for text", "name: 0x11\n", []string{`1: name: must be a single text; write it as "0x11"`}},
		{"date for text", "name: 2001-02-03\n", []string{`1: name: must be a single text; write it as "2001-02-03"`}},
		{"block for text", "name: {a: b}\n", []string{"1: name: must be a single text"}},
		{"text for block", good + "fence: red\n", []string{"2: fence: must be a block with the keys colour, ranges"}},
		{"text for list", good + "labels: a\n", []string{"2: labels: must be a list"}},
		{"text for the whole", "name\n", []string{"1: must be a block with the keys name, door, open, trees, small, rest, fence, beds, labels"}},
		{"list for number", good + "trees: [1]\n", []string{"2: trees: must be a single value"}},
		{"list for a text with a meaning", good + "rest: [1s]\n", []string{"2: rest: must be a single value"}},
		{"wrong number", good + "trees: 1.5\n", []string{`2: trees: "1.5": must be a whole number`}},
		{"number too large", good + "small: 128\n", []string{`2: small: "128": is beyond what any number here can be`}},
		{"wrong truth", good + "open: t\n", []string{`2: open: "t": must be true or false`}},
		{"error that quotes the value", good + "rest: 5\n", []string{`2: rest: time: missing unit in duration "5"`}},
		{"wrong address", good + "door: localhost:80\n", []string{`2: door: "localhost:80": must be an address and a port such as 192.0.2.10:7443 or [2001:db8::1]:7443`}},
		{"address for range", good + "fence: {ranges: [192.0.2.1]}\n", []string{`2: fence.ranges[0]: "192.0.2.1": must be a range such as 192.0.2.0/24; for this single address write 192.0.2.1/32`}},
		{"wrong range", good + "fence: {ranges: [all]}\n", []string{`2: fence.ranges[0]: "all": must be a range such as 192.0.2.0/24 or 2001:db8::/64`}},
		{"wrong in meaning", good + "fence:\n  colour:\n    red\n", []string{`3: fence.colour: "red": must be green or brown`}},
		{"missing in a block", good + "trees: 1\nbeds:\n- rows: 1\n", []string{"4: beds[0].plant: missing"}},
		{"in the order of the lines", "trees: x\nfence: {colour: red}\nopen: x\n", []string{
			`1: trees: "x": must be a whole number`, "1: name: missing", `2: fence.colour: "red": must be green or brown`, `3: open: "x": must be true or false`,
		}},
		{"no YAML", good + "trees: [1\n", []string{"2: is not YAML: did not find expected ',' or ']'"}},
		{"no YAML in the first line", "name: [a\n", []string{"1: is not YAML: did not find expected ',' or ']'"}},
		{"no YAML further on", good + "trees: 1\n- x\n", []string{"3: is not YAML: did not find expected key"}},
		{"tab", good + "\ttrees: 1\n", []string{"2: is not YAML: found a tab character that violates indentation"}},
		{"two documents", good + "---\ntrees: 1\n", []string{"2: a second document begins here; all keys must be in one"}},
		{"no YAML in a second document", good + "---\n\ttrees: 1\n", []string{"3: is not YAML: found character that cannot start any token"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGarden()
			var got []string
			for _, complaint := range Decode([]byte(c.text), &g) {
				got = append(got, complaint.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	bad := write("bad.yaml", "nam: a\ntrees: x\n")
	for _, c := range []struct{ name, file, want string }{
		{"good", write("good.yaml", "name: a\n"), ""},
		{"as long as may be", write("long.yaml", "name: a\n#"+strings.Repeat("-", MaxBytes-9)), ""},
		{"longer", write("longer.yaml", "name: a\n#"+strings.Repeat("-", MaxBytes-8)), dir + "/longer.yaml: has more than the 1048576 bytes that a configuration may have"},
		{"missing", dir + "/none.yaml", "open " + dir + "/none.yaml: no such file or directory"},
		{"folder", dir, "read " + dir + ": is a directory"},
		{"wrong", bad, bad + `:1: nam: unknown key; did you mean "name"?` + "\n" + bad + ":1: name: missing\n" + bad + `:2: trees: "x": must be a whole number`},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGarden()
			got := ""
			if err := Read(c.file, &g); err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got %q; want %q", got, c.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"", "name: a\n", "a: &a [*a]\n", "? [a]\n: b\n", "name: !!binary x\n", "open: !!bool x\n", "trees: !!int x\nname: !!null x\n",
		"beds: [{plant: x}, ~, 3]\nfence: {ranges: [::/0, x]}\n", "name: a\n---\nname: b\n", "name: a\r\rtrees: [1\r", "\"\": 1\n'a\n\n  b': 1\n",
	} {
		f.Add([]byte(seed))
	}
	breaks := strings.NewReplacer("\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n")
	f.Fuzz(func(t *testing.T, data []byte) {
		g := newGarden()
		lines, last := 1+strings.Count(breaks.Replace(string(data)), "\n"), 1
		if bytes.HasPrefix(data, []byte("\xff\xfe")) || bytes.HasPrefix(data, []byte("\xfe\xff")) {
			lines = len(data) // UTF-16, whose lines are not worth counting here
		}
		for _, c := range Decode(data, &g) {
			if c.Line < last || c.Line > lines || c.Text == "" || strings.ContainsAny(c.String(), "\n\r") {
				t.Errorf("complaint %+v after line %d of %d: wants a line in order, and a text of one line", c, last, lines)
			}
			last = c.Line
		}
	})
}
