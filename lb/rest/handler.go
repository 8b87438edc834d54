package rest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/eclusa-lb/eclusa/lb"
)

// HandlerOptions configure a handler. Balancer is required, everything else has
// a default.
type HandlerOptions struct {
	// Balancer returns the edge as the cluster sees it, nil if the edge does not
	// serve that cluster. It is called once for each request.
	Balancer func(lb.Cluster) lb.Balancer
	// Pins returns the SHA-256 sums of the public keys (SubjectPublicKeyInfo)
	// that the cluster's certificate may have; none allows every key. nil allows
	// every key of every cluster.
	Pins func(lb.Cluster) [][sha256.Size]byte
	// MaxBody is the largest body of a write in bytes; 0 means DefaultMaxBody.
	MaxBody int64
	// BodyTimeout is how long a client may take to send a body; 0 means 30 s.
	BodyTimeout time.Duration
	// CallTimeout is how long the balancer may take for a call, and the client to
	// read its answer; 0 means 30 s.
	CallTimeout time.Duration
	// RequestsPerSecond and Burst limit the requests of each cluster; 0 means 50
	// and 100.
	RequestsPerSecond float64
	Burst             int
	// MaxCalls and MaxPolls limit how many requests of each cluster are under way
	// at once; polls of the status and claims count apart. 0 means 8 each.
	MaxCalls, MaxPolls int
	// Log gets refusals of access and internal errors; nil means nowhere.
	Log *zap.Logger
}

func (o HandlerOptions) withDefaults() HandlerOptions {
	o.MaxBody = orDefault(o.MaxBody, DefaultMaxBody)
	o.BodyTimeout = orDefault(o.BodyTimeout, 30*time.Second)
	o.CallTimeout = orDefault(o.CallTimeout, 30*time.Second)
	o.RequestsPerSecond = orDefault(o.RequestsPerSecond, 50)
	o.Burst = orDefault(o.Burst, 100)
	o.MaxCalls = orDefault(o.MaxCalls, 8)
	o.MaxPolls = orDefault(o.MaxPolls, 8)
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return o
}

func orDefault[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// NewHandler returns the server's end of the protocol. It answers only requests
// whose client certificate was verified, see [ServerTLS], and starts nothing.
func NewHandler(o HandlerOptions) http.Handler {
	h := &handler{o: o.withDefaults(), tenants: make(map[lb.Cluster]*tenant)}
	h.complaints = rate.NewLimiter(5, 20)
	mux := http.NewServeMux()
	mux.Handle(pathInfo, h.endpoint(methods{http.MethodGet: h.info}))
	mux.Handle(pathClusters+"{cluster}"+nounLease, h.endpoint(methods{http.MethodPost: h.claim}))
	mux.Handle(pathClusters+"{cluster}"+nounConfig, h.endpoint(methods{
		http.MethodGet: h.getConfig, http.MethodPut: h.putConfig, http.MethodPatch: h.patchConfig,
	}))
	mux.Handle(pathClusters+"{cluster}"+nounStatus, h.endpoint(methods{http.MethodGet: h.status}))
	mux.Handle("/", h.endpoint(nil))
	return mux
}

type handler struct {
	o          HandlerOptions
	complaints *rate.Limiter // of log lines about refused access

	mu      sync.Mutex
	tenants map[lb.Cluster]*tenant // of clusters that the edge serves or has served
}

// methods are the calls of one path.
type methods map[string]func(*call) error

func (m methods) allow() string {
	var names []string
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// call is one request on its way.
type call struct {
	w        http.ResponseWriter
	r        *http.Request
	conn     *http.ResponseController
	o        HandlerOptions
	cluster  lb.Cluster
	balancer lb.Balancer
	tenant   *tenant
}

// refusal is an error with a status of its own instead of its kind's.
type refusal struct {
	status int
	header map[string]string
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// endpoint admits a request and hands it to the call for its method.
func (h *handler) endpoint(m methods) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &call{w: w, r: r, conn: http.NewResponseController(w), o: h.o}
		// A client that sends or reads slowly holds this connection for so long
		// and not longer; calls that may take their time set other deadlines. A
		// writer without deadlines is no connection, and cannot be held.
		_ = c.conn.SetReadDeadline(time.Now().Add(h.o.BodyTimeout))
		_ = c.conn.SetWriteDeadline(time.Now().Add(h.o.BodyTimeout + 2*h.o.CallTimeout))
		if err := h.serve(c, m); err != nil {
			h.refuse(c, err)
		}
	})
}

func (h *handler) serve(c *call, m methods) error {
	name, err := h.authenticate(c.r)
	if err != nil {
		return err
	}
	if m == nil {
		return fmt.Errorf("path %q: %w", clip(c.r.URL.Path, maxTitle), lb.ErrNotFound)
	}
	do, ok := m[c.r.Method]
	if !ok {
		return &refusal{http.StatusMethodNotAllowed, map[string]string{"Allow": m.allow()},
			fmt.Errorf("method %q: must be one of %s: %w", clip(c.r.Method, maxTitle), m.allow(), lb.ErrInvalid)}
	}
	if err := h.authorize(c, name); err != nil {
		return err
	}
	if err := c.tenant.admit(); err != nil {
		return err
	}
	if c.r.Method == http.MethodGet && c.r.ContentLength != 0 {
		return fmt.Errorf("body of %d bytes: a GET has none: %w", c.r.ContentLength, lb.ErrInvalid)
	}
	return do(c)
}

// authenticate returns the cluster that the client's certificate speaks for.
func (h *handler) authenticate(r *http.Request) (lb.Cluster, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 || len(r.TLS.VerifiedChains) == 0 {
		return "", forbidden("no verified client certificate")
	}
	cert := r.TLS.PeerCertificates[0]
	// The handshake checked this too, but a connection may live for months.
	if now := time.Now(); now.After(cert.NotAfter) {
		err := forbidden("client certificate %q expired at %s", clip(cert.Subject.CommonName, maxTitle), cert.NotAfter.UTC().Format(time.RFC3339))
		err.header = map[string]string{"Connection": "close"}
		return "", err
	}
	name := lb.Cluster(cert.Subject.CommonName)
	if name == "" {
		return "", forbidden("client certificate has no common name: it must be the cluster's name")
	}
	if h.o.Pins == nil {
		return name, nil
	}
	if pins := h.o.Pins(name); len(pins) > 0 && !slices.Contains(pins, keyHash(cert)) {
		return "", forbidden("client certificate %q: public key with SHA-256 %x is not among the %d pinned ones", clip(string(name), maxTitle), keyHash(cert), len(pins))
	}
	return name, nil
}

// keyHash is what pins are compared with.
func keyHash(cert *x509.Certificate) [sha256.Size]byte {
	return sha256.Sum256(cert.RawSubjectPublicKeyInfo)
}

// authorize fills in the cluster that the request is about, if the certificate's
// owner may touch it.
func (h *handler) authorize(c *call, name lb.Cluster) error {
	c.cluster = name
	if asked := lb.Cluster(c.r.PathValue("cluster")); asked != name && c.r.URL.Path != pathInfo {
		return forbidden("client certificate is of cluster %q, the request is about cluster %q", clip(string(name), maxTitle), clip(string(asked), maxTitle))
	}
	if c.balancer = h.o.Balancer(name); c.balancer == nil {
		return fmt.Errorf("cluster %q is not among those that this edge serves: %w", clip(string(name), maxTitle), lb.ErrNotFound)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.tenant = h.tenants[name]; c.tenant == nil {
		c.tenant = newTenant(name, h.o)
		h.tenants[name] = c.tenant
	}
	return nil
}

func forbidden(format string, args ...any) *refusal {
	return &refusal{status: http.StatusForbidden, err: fmt.Errorf(format, args...)}
}

// temporary tells whether the same call will do soon, as an error says that has a
// method Temporary.
func temporary(err error) bool {
	var t interface {
		error
		Temporary() bool
	}
	return errors.As(err, &t) && t.Temporary()
}

// refuse answers with the problem that err is.
func (h *handler) refuse(c *call, err error) {
	p, known := problemOf(err)
	r, own := errors.AsType[*refusal](err)
	switch {
	case known && own:
		p.Status = r.status
	case own:
		p = Problem{Type: typeBlank, Title: http.StatusText(r.status), Status: r.status, Detail: err.Error()}
	case !known && c.r.Context().Err() != nil:
		return // nobody is there to hear it
	case !known && errors.Is(err, context.DeadlineExceeded):
		p = Problem{Type: typeBlank, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable,
			Detail: fmt.Sprintf("no result within %s", c.o.CallTimeout)}
		c.w.Header().Set("Retry-After", "1")
	case !known && temporary(err):
		p = Problem{Type: typeBlank, Title: http.StatusText(http.StatusServiceUnavailable), Status: http.StatusServiceUnavailable, Detail: err.Error()}
		c.w.Header().Set("Retry-After", "1")
		c.w.Header().Set("Connection", "close") // the next one may reach who can
	case !known:
		p = Problem{Type: typeBlank, Title: http.StatusText(http.StatusInternalServerError), Status: http.StatusInternalServerError,
			Detail: "internal error", RequestID: rand.Text()}
	}
	if own {
		for k, v := range r.header {
			c.w.Header().Set(k, v)
		}
	}
	h.logRefusal(c, p, err)
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte("{}")
	}
	c.send(p.Status, TypeProblem, body)
}

// logRefusal logs what only this end knows or has to act on. Everything else is
// the client's to tell.
func (h *handler) logRefusal(c *call, p Problem, err error) {
	fields := []zap.Field{
		zap.String("method", c.r.Method), zap.String("path", clip(c.r.URL.Path, maxTitle)), zap.String("remote", c.r.RemoteAddr),
		zap.String("cluster", string(c.cluster)), zap.Error(err),
	}
	switch {
	case p.RequestID != "":
		h.o.Log.Error("request failed for an internal reason; the client was told only its ID", append(fields, zap.String("requestID", p.RequestID))...)
	case p.Status == http.StatusForbidden && h.complaints.Allow():
		h.o.Log.Warn("access refused; if it should be allowed, check the cluster's certificate and this edge's list of clusters", fields...)
	default:
		h.o.Log.Debug("request refused", append(fields, zap.Int("status", p.Status))...)
	}
}

// send writes the answer. An error means that nobody reads it.
func (c *call) send(status int, contentType string, body []byte) {
	header := c.w.Header()
	header.Set("Content-Type", contentType)
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Cache-Control", "no-store")
	c.w.WriteHeader(status)
	_, _ = c.w.Write(body)
}

// sendJSON answers with v.
func (c *call) sendJSON(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	c.send(http.StatusOK, TypeJSON, body)
	return nil
}

// context returns the request's context, bounded by the time for a call.
func (c *call) context() (context.Context, context.CancelFunc) {
	// From here on a deadline for reading would end the request's context.
	_ = c.conn.SetReadDeadline(time.Time{})
	return context.WithTimeout(c.r.Context(), c.o.CallTimeout)
}

// mediaType returns the media type of a Content-Type, without parameters.
func mediaType(contentType string) string {
	t, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return ""
	}
	return t
}
