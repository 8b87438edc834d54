package main

import (
	"os"
	"strings"
	"testing"
)

func TestReadmeIsCurrent(t *testing.T) {
	want, err := readme()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../eclusa/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("the table of values in charts/eclusa/README.md is not that of values.yaml: run go generate ./charts/...")
	}
}

func TestTable(t *testing.T) {
	got, err := table([]byte(`# About the file.

# -- The first
# key | it is.
first: ""

# A block.
block:
  # -- A list.
  list:
    - a
    - b: 1
  # -- With a default of its own.
  # @default -- nothing
  map: {x: "1"}
  # -- Yes.
  on: true
  # -- How many.
  n: 3
`))
	if err != nil {
		t.Fatal(err)
	}
	want := "| key | type | default | what it is |\n|---|---|---|---|\n" +
		"| `first` | string | `\"\"` | The first key \\| it is. |\n" +
		"| `block.list` | list | `[a, {b: 1}]` | A list. |\n" +
		"| `block.map` | object | nothing | With a default of its own. |\n" +
		"| `block.on` | bool | `true` | Yes. |\n" +
		"| `block.n` | int | `3` | How many. |\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTableRefuses(t *testing.T) {
	for values, want := range map[string]string{
		"a:\n  # Not said.\n  b: 1\n": `values.yaml:3: a.b: has no comment that begins with "# --"`,
		"- a\n":                       "must be a block of keys",
		"":                            "must be a block of keys",
		"a: [":                        "values.yaml: ",
	} {
		if _, err := table([]byte(values)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", values, err, want)
		}
	}
}
