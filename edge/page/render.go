package page

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"html/template"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
)

//go:embed assets
var assets embed.FS

// assetTypes are the assets that are served, with their types.
var assetTypes = map[string]string{
	"style.css": "text/css; charset=utf-8",
	"live.js":   "text/javascript; charset=utf-8",
	"icon.svg":  "image/svg+xml",
}

// assetVersion changes whenever an asset does, so that browsers may keep them.
var assetVersion = func() string {
	h := sha256.New()
	for _, name := range []string{"style.css", "live.js", "icon.svg"} {
		data, err := assets.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // the program was built without it
		}
		h.Write(data)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}()

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"version":   func() string { return assetVersion },
	"count":     func(n int64) string { return count(float64(n)) },
	"whole":     func(n uint64) string { return group(strconv.FormatUint(n, 10)) },
	"perSecond": perSecond,
	"rate":      bytesPerSecond,
	"amount":    amount,
	"failure":   failureText,
	"healthy":   func(s healthcheck.State) bool { return s.Serves() },
	"clock":     clock,
	"rfc3339":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}).ParseFS(assets, "assets/*.html"))

// clock tells a time of day, with the date if that is another one than today's.
func clock(now, t time.Time) string {
	now, t = now.UTC(), t.UTC()
	if now.Format(time.DateOnly) == t.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2 Jan 15:04")
}

type loginPage struct{ Wrong bool }

// render answers with a page, or that it has not changed.
func render(w http.ResponseWriter, r *http.Request, status int, name string, data any) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name, data); err != nil {
		http.Error(w, "the page cannot be rendered: "+err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, r, status, "text/html; charset=utf-8", b.Bytes())
}

// send answers with a body, or that it has not changed.
func send(w http.ResponseWriter, r *http.Request, status int, kind string, body []byte) {
	sum := sha256.Sum256(body)
	tag := `"` + hex.EncodeToString(sum[:12]) + `"`
	h := w.Header()
	h.Set("Content-Type", kind)
	if status == http.StatusOK {
		h.Set("ETag", tag)
		// Kept by the browser, and asked for again each time: that is what makes
		// looking every two seconds cheap.
		h.Set("Cache-Control", "private, no-cache")
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	h.Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone needs no answer
	}
}

func serveAsset(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/assets/")
	kind, ok := assetTypes[name]
	if !ok {
		http.NotFound(w, r)
		return
	}
	data, err := assets.ReadFile(path.Join("assets", name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Length", fmt.Sprint(len(data)))
	h.Set("Cache-Control", "no-cache")
	if r.URL.Query().Get("v") == assetVersion {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	if r.Method != http.MethodHead {
		_, _ = w.Write(data) //nolint:gosec // an asset of the program; a client that is gone needs no answer
	}
}
