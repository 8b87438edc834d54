package page

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// Access says who may look at a page. The zero value lets nobody in.
type Access struct {
	// Open lets in whoever reaches the listener, which must be on loopback then.
	Open bool
	// Token returns the token that opens the page; nil or an empty token opens
	// nothing. It is asked again at every request.
	Token func() []byte
	// Certificate lets in whoever shows a client certificate that the listener
	// has verified.
	Certificate bool
}

const (
	sessionCookie = "eclusa_edge_session"
	// sessionFor is how long nobody has to log in again.
	sessionFor = 12 * time.Hour
	// maxForm is the largest login form, in bytes.
	maxForm = 4096
)

// guard lets in who may look. Sessions are kept by browsers alone: a cookie is
// signed with a key made from the token, so that a new token ends all of them.
type guard struct {
	Access
	now      func() time.Time
	failures *failures
	log      *zap.Logger
}

// protect lets through who may look, and tells others how they may.
func (g *guard) protect(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secure(w.Header())
		switch {
		case g.Open && !harmlessHost(r.Host):
			// Somebody else's page, whose name now leads to this machine, must not
			// read what the browser's user can.
			http.Error(w, "this page is only served under an IP address or localhost", http.StatusMisdirectedRequest)
		case g.Open, g.certified(r), g.hasSession(r):
			h.ServeHTTP(w, r)
		case len(g.token()) == 0:
			http.Error(w, "the status page is closed: beyond loopback it needs management.tokenFile or management.clientCAFile", http.StatusForbidden)
		case r.Header.Get("Authorization") != "":
			g.bearer(w, r, h)
		case wantsHTML(r):
			w.Header().Set("Location", "login")
			w.WriteHeader(http.StatusSeeOther)
		default:
			unauthorized(w, "a token is needed: send it as Authorization: Bearer TOKEN")
		}
	})
}

func (g *guard) token() []byte {
	if g.Token == nil {
		return nil
	}
	return g.Token()
}

func (g *guard) certified(r *http.Request) bool {
	return g.Certificate && r.TLS != nil && len(r.TLS.VerifiedChains) > 0
}

func (g *guard) bearer(w http.ResponseWriter, r *http.Request, h http.Handler) {
	given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case g.failures.exhausted(r, g.now()):
		tooMany(w)
	case ok && g.isToken(given):
		h.ServeHTTP(w, r)
	default:
		g.refused(r)
		unauthorized(w, "the token is wrong")
	}
}

func unauthorized(w http.ResponseWriter, text string) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="eclusa-edge"`)
	http.Error(w, text, http.StatusUnauthorized)
}

func tooMany(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "10")
	http.Error(w, "too many wrong tokens; try again in ten seconds", http.StatusTooManyRequests)
}

// refused notes a wrong token. Only the first of an address in a while is worth a
// line: guessers must not push out of the log's end what operators have to see.
func (g *guard) refused(r *http.Request) {
	if n, first := g.failures.note(r, g.now()); first {
		g.log.Warn(wrongToken, zap.String("from", host(r.RemoteAddr)), zap.Uint64("wrongTokensSoFar", n))
	}
}

// isToken compares in a time that depends on neither token, nor on their lengths.
func (g *guard) isToken(given string) bool {
	want := g.token()
	a, b := sha256.Sum256([]byte(given)), sha256.Sum256(want)
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && len(want) > 0
}

// login shows the form and takes it.
func (g *guard) login() http.Handler {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case len(g.token()) == 0:
			toPage(w)
		case r.Method == http.MethodPost:
			g.takeForm(w, r)
		case r.Method == http.MethodGet || r.Method == http.MethodHead:
			render(w, r, http.StatusOK, "login", loginPage{})
		default:
			w.Header().Set("Allow", "GET, HEAD, POST")
			http.Error(w, r.Method+": only GET, HEAD and POST are possible here", http.StatusMethodNotAllowed)
		}
	})
	// A form on another site must not log anybody in.
	return http.NewCrossOriginProtection().Handler(h)
}

func (g *guard) takeForm(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	if g.failures.exhausted(r, g.now()) {
		tooMany(w)
		return
	}
	// Only from the body: tokens in addresses end up in logs.
	if g.isToken(strings.TrimSpace(r.PostForm.Get("token"))) {
		g.log.Info("somebody has logged in to the status page", zap.String("from", host(r.RemoteAddr)))
		http.SetCookie(w, g.cookie(r, g.session(g.now().Add(sessionFor)), int(sessionFor.Seconds())))
		toPage(w)
		return
	}
	g.refused(r)
	render(w, r, http.StatusUnauthorized, "login", loginPage{Wrong: true})
}

// logout ends the session of a browser.
func (g *guard) logout() http.Handler {
	return http.NewCrossOriginProtection().Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", "POST")
			http.Error(w, "only POST is possible here", http.StatusMethodNotAllowed)
			return
		}
		http.SetCookie(w, g.cookie(r, "", -1))
		w.Header().Set("Location", "login")
		w.WriteHeader(http.StatusSeeOther)
	}))
}

// toPage leads to the page, wherever a proxy may have put it.
func toPage(w http.ResponseWriter) {
	w.Header().Set("Location", "./")
	w.WriteHeader(http.StatusSeeOther)
}

func (g *guard) cookie(r *http.Request, value string, seconds int) *http.Cookie {
	return &http.Cookie{ //nolint:gosec // over plain HTTP a browser would not keep a cookie that is Secure
		Name: sessionCookie, Value: value, MaxAge: seconds, Path: "/",
		HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteStrictMode,
	}
}

// session returns a cookie's value: when it ends, and a proof that it was given
// out to somebody who knew the token.
func (g *guard) session(until time.Time) string {
	end := strconv.FormatInt(until.Unix(), 10)
	return end + "." + base64.RawURLEncoding.EncodeToString(g.sign(end))
}

func (g *guard) sign(end string) []byte {
	m := hmac.New(sha256.New, g.token())
	m.Write([]byte("eclusa-edge status page session until " + end))
	return m.Sum(nil)
}

func (g *guard) hasSession(r *http.Request) bool {
	c, err := r.Cookie(sessionCookie)
	if err != nil || len(g.token()) == 0 {
		return false
	}
	end, signature, ok := strings.Cut(c.Value, ".")
	given, err := base64.RawURLEncoding.DecodeString(signature)
	if !ok || err != nil || !hmac.Equal(given, g.sign(end)) {
		return false
	}
	until, err := strconv.ParseInt(end, 10, 64)
	return err == nil && g.now().Before(time.Unix(until, 0))
}

// harmlessHost tells whether no other site can have sent a browser here: names
// of others can be made to lead to loopback, addresses cannot.
func harmlessHost(s string) bool {
	u, err := url.Parse("//" + s)
	if err != nil {
		return false
	}
	name := strings.ToLower(u.Hostname())
	_, err = netip.ParseAddr(name)
	return err == nil || name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// wantsHTML tells whether a browser asks for a page.
func wantsHTML(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && r.Header.Get("Sec-Fetch-Dest") != "empty"
}

func host(addr string) string {
	if h, _, err := net.SplitHostPort(addr); err == nil {
		return h
	}
	return addr
}
