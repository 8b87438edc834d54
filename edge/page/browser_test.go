package page

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var screenshots = flag.String("screenshots", "", "write pictures of the page into this directory")

// A browser is a headless Chromium, and what it has complained about.
type browser struct {
	ctx context.Context
}

// newBrowser starts Chromium once for all subtests of a test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil && path == "" {
			path = found
		}
	}
	if path == "" {
		const missing = "no Chromium on this machine: install Debian's package chromium, or run `make tools` as root"
		if os.Getenv("CI") == "true" {
			t.Fatal(missing)
		}
		t.Skip(missing)
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless,
		chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute),
	}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage", "disable-extensions", "disable-default-apps"} {
		options = append(options, chromedp.Flag(name, true))
	}
	ctx, stopAll := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, stop := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		// Cancel waits until the browser has ended, and its folder can be removed.
		_ = chromedp.Cancel(ctx)
		stop()
		stopAll()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	return &browser{ctx}
}

// A tab is one page in a browser.
type tab struct {
	t    *testing.T
	ctx  context.Context
	base string

	mu         sync.Mutex
	complaints []string // of the console, and requests to others
	expected   []string // parts of complaints that are meant to be
}

// open opens a tab on what a handler serves. When the test ends nothing may have
// been complained about.
func (b *browser) open(t *testing.T, h http.Handler) *tab {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	ctx, cancel := chromedp.NewContext(b.ctx)
	t.Cleanup(cancel)
	p := &tab{t: t, ctx: ctx, base: server.URL}
	if err := chromedp.Listen(ctx, p.listen); err != nil {
		t.Fatal(err)
	}
	command(p, log.Enable, cdp.Empty{})
	command(p, network.Enable, network.EnableParams{})
	p.size(1280, 900, false)
	t.Cleanup(func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.complaints {
			t.Error("the browser complains: " + c)
		}
	})
	return p
}

func (p *tab) listen(ev any) {
	text := ""
	switch ev := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		if ev.Type == runtime.ConsoleAPICalledTypeError || ev.Type == runtime.ConsoleAPICalledTypeWarning {
			text = fmt.Sprintf("console.%s: %s", ev.Type, ev.Args[0].Value)
		}
	case *runtime.EventExceptionThrown:
		text = ev.ExceptionDetails.Text
	case *log.EventEntryAdded:
		if ev.Entry.Level == log.EntryLevelError || ev.Entry.Level == log.EntryLevelWarning {
			text = fmt.Sprintf("%s: %s %s", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL)
		}
	case *network.EventRequestWillBeSent:
		if !strings.HasPrefix(ev.Request.URL, p.base+"/") {
			text = "a request to " + ev.Request.URL
		}
	}
	if text == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.expected {
		if strings.Contains(text, e) {
			return
		}
	}
	p.complaints = append(p.complaints, text)
}

// expect says that complaints with this text are meant to be.
func (p *tab) expect(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = append(p.expected, text)
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	if err := chromedp.Do(p.timeout(), actions...); err != nil {
		p.t.Fatal(err)
	}
}

// timeout returns a context for one action.
func (p *tab) timeout() context.Context {
	ctx, cancel := context.WithTimeout(p.ctx, 30*time.Second)
	p.t.Cleanup(cancel)
	return ctx
}

// command sends a command of the protocol.
func command[P, R any](p *tab, cmd cdp.Command[P, R], params P) R {
	p.t.Helper()
	r, err := chromedp.Call(p.timeout(), cmd, params)
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// size makes the window that of a desk or a phone.
func (p *tab) size(width, height int64, phone bool) {
	p.t.Helper()
	o := emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1, Mobile: phone}
	if phone {
		o.DeviceScaleFactor = 2
	}
	command(p, emulation.SetDeviceMetricsOverride, o)
}

// prefer makes the user prefer "light" or "dark".
func (p *tab) prefer(scheme string) {
	p.t.Helper()
	command(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// visit loads a page and waits for its script.
func (p *tab) visit(path string) {
	p.t.Helper()
	p.do(chromedp.Navigate(p.base + path))
	p.wait(`document.readyState === "complete"`)
}

// eval returns the value of an expression.
func eval[V any](p *tab, expression string) V {
	p.t.Helper()
	v, err := chromedp.Run(p.timeout(), chromedp.Evaluate[V](expression))
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// wait waits until an expression is true.
func (p *tab) wait(expression string) {
	p.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		// A page that is being replaced cannot be asked.
		if ok, err := chromedp.Run(p.timeout(), chromedp.Evaluate[bool]("!!("+expression+")")); err == nil && ok {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("waited for %s; the page says %q", expression, eval[string](p, `document.body.innerText`))
		}
		time.Sleep(50 * time.Millisecond) // poll
	}
}

// keys presses keys one after the other.
func (p *tab) keys(keys string) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys))
}

// press presses a key the way a keyboard does: if the page takes it for itself,
// it is not typed.
func (p *tab) press(key string) {
	p.t.Helper()
	command(p, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: key, Text: key})
	command(p, input.DispatchKeyEvent, input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyUp, Key: key})
}

// shoot writes a picture of the whole page, if pictures are asked for.
func (p *tab) shoot(name string) {
	p.t.Helper()
	if *screenshots == "" {
		return
	}
	png, err := chromedp.Run(p.timeout(), chromedp.FullScreenshot(100))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o600); err != nil {
		p.t.Fatal(err)
	}
}
