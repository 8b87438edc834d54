package page

import (
	"encoding/json"
	"flag"
	"net/url"
	"os"
	"strings"

	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
)

var update = flag.Bool("update", false, "write the golden files, and the picture for the documentation")

const picture = "../../docs/images/edge-status.png"

// updatePicture takes the picture of the documentation anew.
func (p *tab) updatePicture(path string) {
	p.t.Helper()
	if !*update {
		return
	}
	p.visit(path)
	beyond := true
	shot := command(p, page.CaptureScreenshot, page.CaptureScreenshotParams{
		Clip: &page.Viewport{Width: 1280, Height: 1360, Scale: 1}, CaptureBeyondViewport: &beyond,
	})
	if err := os.WriteFile(picture, shot.Data, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// narrow fails if the page has to be scrolled sideways.
func (p *tab) narrow(what string) {
	p.t.Helper()
	wide := eval[[]string](p, `(() => {
		const most = document.documentElement.clientWidth;
		if (document.documentElement.scrollWidth <= most) return [];
		return [...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > most + 1)
			.slice(0, 5).map(e => e.outerHTML.slice(0, 120));
	})()`)
	for _, e := range wide {
		p.t.Errorf("%s: is wider than the window: %s", what, e)
	}
}

// readable fails where text has less contrast than WCAG asks for at level AA.
func (p *tab) readable(what string) {
	p.t.Helper()
	for _, e := range eval[[]string](p, contrastScript) {
		p.t.Errorf("%s: %s", what, e)
	}
}

// contrastScript lists text whose contrast with what is behind it is under 4.5.
const contrastScript = `(() => {
	const parse = c => { const m = c.match(/[\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
	const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
	const light = c => { const [r, g, b] = c.map(v => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
	const behind = e => {
		const layers = [];
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c[3]) layers.push(c);
			if (c[3] === 1) break;
		}
		return layers.reverse().reduce((under, c) => over(c, under), [255, 255, 255, 1]);
	};
	const bad = [];
	for (const e of document.querySelectorAll("body *")) {
		const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data.trim()).join("");
		if (!text || !e.checkVisibility() || e.closest(".hidden, .off, .skip, svg")) continue;
		const back = behind(e), front = over(parse(getComputedStyle(e).color), back);
		const [hi, lo] = [light(front), light(back)].sort((a, b) => b - a);
		const contrast = (hi + .05) / (lo + .05);
		if (contrast < 4.5) bad.push("contrast " + contrast.toFixed(2) + " of " + text.slice(0, 40));
	}
	return bad.slice(0, 10);
})()`

func click(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Click(selector)
}

func focus(selector string) chromedp.Action[chromedp.Void] {
	return chromedp.Focus(selector)
}

func queryEscape(s string) string { return url.QueryEscape(s) }

// detailPath is the path of a load balancer whose cluster and UID have a name.
func detailPath(name string) string {
	return "/load-balancer?cluster=" + url.QueryEscape(name) + "&uid=" + url.QueryEscape(name)
}

// quote returns a JavaScript string.
func quote(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(data), "</", `<\/`)
}
