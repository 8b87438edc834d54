package figure

import (
	"fmt"
	"html"
	"maps"
	"math"
	"slices"
	"strings"
)

// colours are told apart by people who see few of them, too (Okabe and Ito).
var colours = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999"}

const (
	fontSize  = 12
	barHeight = 13
	labelGap  = 190
	plotWidth = 520
)

// Bar is a figure with the ends of its interval.
type Bar struct {
	Label            string
	Value, Low, High float64
}

// Group is what is compared.
type Group struct {
	Label string
	Bars  []Bar
}

// drawing collects elements.
type drawing struct {
	strings.Builder
}

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(&d.Builder, format+"\n", args...) }

func (d *drawing) text(x, y float64, anchor, more, s string) {
	d.add(`<text x="%.1f" y="%.1f" text-anchor="%s"%s>%s</text>`, x, y, anchor, more, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, colour string, width float64) {
	d.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-width="%.1f"/>`, x1, y1, x2, y2, colour, width)
}

// finish puts the elements on a white sheet, which is readable on dark pages too.
func (d *drawing) finish(width, height float64) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="sans-serif" font-size="%d">
<rect width="100%%" height="100%%" fill="white"/>
%s</svg>
`, width, height, width, height, fontSize, d.String())
}

// labels are those of all bars, in the order in which they come.
func labels(groups []Group) (all []string) {
	for _, g := range groups {
	next:
		for _, b := range g.Bars {
			for _, l := range all {
				if l == b.Label {
					continue next
				}
			}
			all = append(all, b.Label)
		}
	}
	return all
}

// Bars draws groups of bars, with a line at 1: what they are compared with.
func Bars(title, axis string, groups []Group) string {
	names := labels(groups)
	colour := make(map[string]string)
	for i, n := range names {
		colour[n] = colours[i%len(colours)]
	}
	most := 1.0
	for _, g := range groups {
		for _, b := range g.Bars {
			if !math.IsNaN(b.Value) {
				most = max(most, b.Value, b.High)
			}
		}
	}
	step := niceStep(most / 6)
	most = math.Ceil(most/step) * step
	x := func(v float64) float64 { return labelGap + v/most*plotWidth }
	var d drawing
	d.text(10, 20, "start", ` font-weight="bold"`, title)
	y := 40.0
	for i, n := range names { // the legend, three in a row
		at := 10 + float64(i%3)*240
		d.add(`<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/>`, at, y-9, colour[n])
		d.text(at+15, y, "start", "", n)
		if i%3 == 2 || i == len(names)-1 {
			y += 18
		}
	}
	top := y
	var bars drawing
	for _, g := range groups {
		y += 8
		bars.text(labelGap-8, y+float64(len(g.Bars))*barHeight/2+4, "end", "", g.Label)
		for _, b := range g.Bars {
			if !math.IsNaN(b.Value) {
				bars.add(`<rect x="%d" y="%.1f" width="%.1f" height="%d" fill="%s"/>`, labelGap, y+1, x(b.Value)-labelGap, barHeight-2, colour[b.Label])
				bars.line(x(b.Low), y+barHeight/2, x(b.High), y+barHeight/2, "black", 1)
				bars.text(x(max(b.High, b.Value))+4, y+barHeight-2, "start", ` font-size="10"`, fmt.Sprintf("%.2f", b.Value))
			}
			y += barHeight
		}
	}
	for v := 0.0; v <= most+step/2; v += step {
		d.line(x(v), top, x(v), y+6, "#dddddd", 1)
		d.text(x(v), y+20, "middle", "", fmt.Sprintf("%g", math.Round(v*100)/100))
	}
	d.WriteString(bars.String())
	d.line(x(1), top, x(1), y+6, "black", 1)
	d.text(labelGap+plotWidth/2, y+38, "middle", "", axis)
	return d.finish(labelGap+plotWidth+60, y+50)
}

// niceStep is the next larger of 1, 2 and 5 and their multiples by ten.
func niceStep(v float64) float64 {
	base := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*base >= v {
			return m * base
		}
	}
	return 10 * base
}

// Point is a figure at a size, with the ends of its interval.
type Point struct{ X, Y, Low, High float64 }

// Curve is how a figure changes with a size.
type Curve struct {
	Label  string
	Points []Point
}

// Curves draws figures against sizes, both on logarithmic scales.
func Curves(title, across, up string, curves []Curve) string {
	const left, top, height = 80.0, 60.0, 320.0
	lowX, highX, lowY, highY := math.Inf(1), math.Inf(-1), math.Inf(1), math.Inf(-1)
	for _, c := range curves {
		for _, p := range c.Points {
			lowX, highX = min(lowX, p.X), max(highX, p.X)
			lowY, highY = min(lowY, p.Y), max(highY, p.Y)
			if p.Low > 0 {
				lowY, highY = min(lowY, p.Low), max(highY, p.High)
			}
		}
	}
	if math.IsInf(lowX, 0) || lowX <= 0 || lowY <= 0 {
		return ""
	}
	lowY, highY = decade(lowY, math.Floor), decade(highY, math.Ceil)
	if lowY == highY {
		highY *= 10
	}
	if lowX == highX {
		highX *= 10
	}
	at := func(v, low, high float64) float64 { return math.Log(v/low) / math.Log(high/low) }
	x := func(v float64) float64 { return left + at(v, lowX, highX)*plotWidth }
	y := func(v float64) float64 { return top + height - at(v, lowY, highY)*height }
	var d drawing
	d.text(10, 20, "start", ` font-weight="bold"`, title)
	d.text(10, top-12, "start", "", up)
	for v := lowY; v <= highY*1.001; v *= 10 {
		d.line(left, y(v), left+plotWidth, y(v), "#dddddd", 1)
		d.text(left-6, y(v)+4, "end", "", fmt.Sprintf("%g", v))
	}
	ticks := make(map[float64]bool)
	for i, c := range curves {
		colour := colours[i%len(colours)]
		var path []string
		for _, p := range c.Points {
			ticks[p.X] = true
			path = append(path, fmt.Sprintf("%.1f,%.1f", x(p.X), y(p.Y)))
			d.add(`<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`, x(p.X), y(p.Y), colour)
			if p.Low > 0 && p.High > 0 {
				d.line(x(p.X), y(p.Low), x(p.X), y(p.High), colour, 1)
			}
		}
		d.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(path, " "), colour)
		d.add(`<rect x="%.1f" y="%.1f" width="10" height="10" fill="%s"/>`, left+plotWidth+16, top+float64(i)*18, colour)
		d.text(left+plotWidth+31, top+float64(i)*18+9, "start", "", c.Label)
	}
	for _, v := range slices.Sorted(maps.Keys(ticks)) {
		d.line(x(v), top, x(v), top+height, "#dddddd", 1)
		d.text(x(v), top+height+16, "middle", "", fmt.Sprintf("%g", v))
	}
	d.text(left+plotWidth/2, top+height+36, "middle", "", across)
	return d.finish(left+plotWidth+230, top+height+50)
}

func decade(v float64, round func(float64) float64) float64 {
	return math.Pow(10, round(math.Log10(v)))
}
