// Command table writes the table of the chart's values into its README, from the
// comments in values.yaml: what follows "# --" describes a key, and what follows
// "# @default --" says its default where the value itself would not.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
)

//go:generate go run .

// chart is where the chart is, seen from this folder.
const chart = "../eclusa"

const (
	begin = "<!-- The table is made from values.yaml by `make generate`. -->\n"
	end   = "<!-- End of the table. -->\n"
)

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "table:", err)
		os.Exit(1)
	}
}

func write() error {
	text, err := readme()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(chart, "README.md"), []byte(text), 0o644) //nolint:gosec // it is there to be read
}

// readme returns the README of the chart with the table as it should be.
func readme() (string, error) {
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		return "", err
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return "", fmt.Errorf("README.md: has no place for the table: the lines %q and %q", begin, end)
	}
	rows, err := table(values)
	if err != nil {
		return "", err
	}
	return before + begin + rows + end + after, nil
}

// table returns the table of all keys that values.yaml describes.
func table(values []byte) (string, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(values, &doc); err != nil {
		return "", fmt.Errorf("values.yaml: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return "", errors.New("values.yaml: must be a block of keys")
	}
	var b strings.Builder
	b.WriteString("| key | type | default | what it is |\n|---|---|---|---|\n")
	if err := rows(&b, doc.Content[0], ""); err != nil {
		return "", err
	}
	return b.String(), nil
}

// rows writes a row for each key in the block, and in the blocks below a key
// that has no description of its own.
func rows(b *strings.Builder, block *yaml.Node, path string) error {
	for i := 0; i+1 < len(block.Content); i += 2 {
		name, value := block.Content[i], block.Content[i+1]
		key := strings.TrimPrefix(path+"."+name.Value, ".")
		text, byDefault := description(name.HeadComment)
		switch {
		case text == "" && value.Kind == yaml.MappingNode && len(value.Content) > 0:
			if err := rows(b, value, key); err != nil {
				return err
			}
			continue
		case text == "":
			return fmt.Errorf("values.yaml:%d: %s: has no comment that begins with \"# --\"", name.Line, key)
		case byDefault == "":
			flow, err := inline(value)
			if err != nil {
				return fmt.Errorf("values.yaml:%d: %s: %w", name.Line, key, err)
			}
			byDefault = "`" + flow + "`"
		}
		cell := strings.NewReplacer("|", `\|`, "\n", " ")
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", key, kind(value), cell.Replace(byDefault), cell.Replace(text))
	}
	return nil
}

// description returns what a comment says of its key and of its default.
func description(comment string) (text, byDefault string) {
	var lines []string
	begun := false
	for line := range strings.Lines(comment) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		if rest, ok := strings.CutPrefix(line, "-- "); ok {
			begun, lines = true, []string{rest}
			continue
		}
		if rest, ok := strings.CutPrefix(line, "@default -- "); ok {
			byDefault = rest
			continue
		}
		if begun {
			lines = append(lines, line)
		}
	}
	return strings.TrimSpace(strings.Join(lines, " ")), byDefault
}

func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "object"
	case n.Kind == yaml.SequenceNode:
		return "list"
	case n.Tag == "!!bool":
		return "bool"
	case n.Tag == "!!int":
		return "int"
	default:
		return "string"
	}
}

// inline returns the value on one line.
func inline(n *yaml.Node) (string, error) {
	plain := *n
	plain.HeadComment, plain.LineComment, plain.FootComment = "", "", ""
	flat(&plain)
	out, err := yaml.Marshal(&plain)
	return strings.TrimSpace(string(out)), err
}

// flat makes the value and all in it of flow style, as in JSON.
func flat(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode {
		n.Style = yaml.FlowStyle
	}
	for _, child := range n.Content {
		flat(child)
	}
}
