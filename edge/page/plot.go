package page

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// plot is a drawing of points over the window: paths in a box of width × height
// units, and what they mean in words.
type plot struct {
	Width, Height int
	Line, Area    string // paths; empty if there is nothing to draw
	Label         string // for those who cannot see it
	Max, Now      string // the largest and the newest value
}

// quantity is something to plot.
type quantity struct {
	name   string
	value  func(point) float32
	format func(float64) string
}

var (
	active   = quantity{"open connections", func(p point) float32 { return p.active }, count}
	accepted = quantity{"new connections per second", func(p point) float32 { return p.accepted }, perSecond}
	refused  = quantity{"refused connections per second", func(p point) float32 { return p.refused }, perSecond}
	bytesIn  = quantity{"traffic from clients", func(p point) float32 { return p.in }, bytesPerSecond}
	bytesOut = quantity{"traffic to clients", func(p point) float32 { return p.out }, bytesPerSecond}
)

// draw plots a quantity over the window before now.
func draw(l line, q quantity, now time.Time, width, height int) plot {
	p := plot{Width: width, Height: height, Label: "no " + q.name + " in the last minutes", Max: q.format(0), Now: q.format(0)}
	var top float64
	for _, at := range l.points {
		top = max(top, float64(q.value(at)))
	}
	if n := len(l.points); n > 0 {
		p.Max, p.Now = q.format(top), q.format(float64(q.value(l.points[n-1])))
	}
	if top > 0 {
		p.Label = fmt.Sprintf("%s in the last minutes: now %s, at most %s", q.name, p.Now, p.Max)
	}
	if len(l.points) < 2 || top == 0 {
		return p // a line along the bottom
	}
	p.Line, p.Area = paths(l, q, now, top, float64(width), float64(height))
	return p
}

func paths(l line, q quantity, now time.Time, top, width, height float64) (stroke, area string) {
	const margin = 2 // so that the stroke is not cut off
	var b strings.Builder
	var first, last float64
	for i, at := range l.points {
		x := width * (1 - float64(now.Sub(l.at[i]))/float64(window))
		y := height - margin - (height-2*margin)*float64(q.value(at))/top
		if i == 0 {
			first = x
			b.WriteByte('M')
		} else {
			b.WriteByte('L')
		}
		last = x
		b.WriteString(tenth(x))
		b.WriteByte(' ')
		b.WriteString(tenth(y))
	}
	stroke = b.String()
	return stroke, fmt.Sprintf("%sL%s %sL%s %sZ", stroke, tenth(last), tenth(height), tenth(first), tenth(height))
}

func tenth(f float64) string { return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) }

// count returns a number as people read it.
func count(f float64) string {
	switch {
	case f < 100_000:
		return group(strconv.FormatFloat(math.Round(f), 'f', 0, 64))
	case f < 1e6:
		return short(f/1e3) + "k"
	default:
		return short(f/1e6) + "M"
	}
}

// group separates the thousands of a whole number.
func group(digits string) string {
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// short returns three digits.
func short(f float64) string {
	switch {
	case f < 10:
		return strconv.FormatFloat(f, 'f', 2, 64)
	case f < 100:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'f', 0, 64)
}

func perSecond(f float64) string {
	switch {
	case f == 0:
		return "0/s"
	case f < 0.1:
		return "<0.1/s"
	case f < 10:
		return strconv.FormatFloat(f, 'f', 1, 64) + "/s"
	}
	return count(f) + "/s"
}

func bytesPerSecond(f float64) string {
	for _, unit := range []string{"B", "kB", "MB", "GB"} {
		if f < 999.5 || unit == "GB" {
			if unit == "B" {
				return strconv.FormatFloat(math.Round(f), 'f', 0, 64) + " B/s"
			}
			return short(f) + " " + unit + "/s"
		}
		f /= 1000
	}
	return ""
}

// amount returns an amount of data.
func amount(n uint64) string { return strings.TrimSuffix(bytesPerSecond(float64(n)), "/s") }

// ago returns how long something is past, in words that do not change with
// every second.
func ago(now, then time.Time) string {
	if then.IsZero() {
		return ""
	}
	switch d := now.Sub(then); {
	case d < 10*time.Second:
		return "just now"
	case d < time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds())/10*10)
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days ago", int(d.Hours()/24))
	}
}
