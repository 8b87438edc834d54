package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/yaml"

	"github.com/eclusa-lb/eclusa/report"
)

// printer writes for people and programs. Its first error is kept.
type printer struct {
	out    io.Writer
	colour bool
	wide   bool
	err    error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format+"\n", args...)
	}
}

func (p *printer) json(value any) {
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		p.err = err
		return
	}
	p.line("%s", data)
}

func (p *printer) yaml(value any) {
	data, err := yaml.Marshal(value)
	if err != nil {
		p.err = err
		return
	}
	p.line("%s", strings.TrimSuffix(string(data), "\n"))
}

// Colours of a terminal.
const (
	red    = "31"
	yellow = "33"
	green  = "32"
	faint  = "2"
)

func (p *printer) paint(colour, text string) string {
	if !p.colour || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// colourOf returns the colour of a word that says how something is.
func colourOf(word string) string {
	switch word {
	case string(report.Problem), "down", "remove", "no":
		return red
	case string(report.Notice), "draining", "unknown", "change":
		return yellow
	case string(report.OK), "up", "create", "keep", "yes":
		return green
	}
	return ""
}

// table is rows of cells below a head. Lines below a row belong to it.
type table struct {
	head  []string
	rows  [][]string
	below map[int][]string
	// words is the column whose words have a colour, -1 for none.
	words int
}

func newTable(words int, head ...string) *table {
	return &table{head: head, below: map[int][]string{}, words: words}
}

func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// note adds lines below the last row.
func (t *table) note(lines ...string) {
	t.below[len(t.rows)-1] = append(t.below[len(t.rows)-1], lines...)
}

func (p *printer) table(t *table) {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	write := func(row []string, words int) {
		var b strings.Builder
		for i, cell := range row {
			text := cell
			if i == words && colourOf(cell) != "" {
				text = p.paint(colourOf(cell), cell)
			}
			b.WriteString(text)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+3))
			}
		}
		p.line("%s", strings.TrimRight(b.String(), " "))
	}
	write(t.head, -1)
	for i, row := range t.rows {
		write(row, t.words)
		for _, l := range t.below[i] {
			p.line("%s", l)
		}
	}
}

// findings returns the lines that tell of findings, indented.
func (p *printer) findings(findings []report.Finding, now time.Time, indent string) []string {
	var lines []string
	for i, f := range findings {
		mark := p.paint(colourOf(string(f.Level)), map[report.Level]string{report.Problem: "✗", report.Notice: "!"}[f.Level])
		text := f.What
		if f.Where != "" {
			text = f.Where + ": " + text
		}
		if f.Since != nil {
			text += " (" + ago(*f.Since, now) + ")"
		}
		lines = append(lines, indent+mark+" "+printable(text))
		// Advice is given once to findings that follow one another.
		if f.Do != "" && (i+1 == len(findings) || findings[i+1].Do != f.Do) {
			lines = append(lines, indent+"  "+p.paint(faint, "→ "+printable(f.Do)))
		}
	}
	return lines
}

// printable takes control characters out of what others have written, so that it
// cannot play tricks on a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// ago says how long something has been so.
func ago(since, now time.Time) string {
	d := now.Sub(since)
	if d < 0 {
		d = 0
	}
	return "for " + duration.HumanDuration(d)
}

// count writes a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// orDash stands a dash for nothing.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// origin returns the line that says who made a report.
func (p *printer) origin(o report.Origin) string {
	at := o.Time.UTC().Format(time.RFC3339)
	if o.Leader == "" {
		return p.paint(faint, "from the objects in the cluster at "+at)
	}
	return p.paint(faint, fmt.Sprintf("from the leader %s (%s) at %s", printable(o.Leader), printable(o.Version), at))
}
