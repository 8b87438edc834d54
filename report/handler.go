package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Prefix is what the paths of the answers begin with.
const Prefix = "/eclusa/v1/"

// The paths of the answers.
const (
	StatusPath  = Prefix + "status"
	ExplainPath = Prefix + "explain"
	PlanPath    = Prefix + "plan"
)

// What the leader tells on its Lease, for those who look for it.
const (
	// CertificateAnnotation has the SHA-256 of the leader's serving certificate, in
	// hexadecimal digits. Credentials must not be sent to anybody with another.
	CertificateAnnotation = "eclusa.io/serving-certificate-sha256"
	// PortAnnotation has the port on which the leader serves.
	PortAnnotation = "eclusa.io/serving-port"
)

// MaxPlan is the largest size of a PlanRequest in bytes.
const MaxPlan = 4 << 20

const (
	// readers and planners are how many answers are made at once. A plan costs as
	// much as some rounds of the manager's decisions.
	readers, planners = 4, 1
	// plans is how many plans are in hand at once, from before their request is read
	// until they are answered; more are refused, since each that waits holds all of
	// its request. bodyTime is how long a request may take to arrive.
	plans    = 3
	bodyTime = 10 * time.Second
	// patience is how long a request waits for others before it is refused.
	patience = 5 * time.Second
)

// ErrNotFound says that there is no such Service.
var ErrNotFound = errors.New("not found")

// A Source makes reports. Its methods may be called concurrently.
type Source interface {
	// Status returns the state of everything in one namespace, or in all for "";
	// with all, Services without findings too.
	Status(namespace string, all bool) Status
	// Explain returns everything about one Service; ErrNotFound if there is none.
	Explain(namespace, name string) (Explanation, error)
	// Plan returns what a change would do; an error says what is wrong with the
	// request.
	Plan(ctx context.Context, r PlanRequest) (Plan, error)
}

// HandlerOptions are what a handler needs from its surroundings.
type HandlerOptions struct {
	// Source returns what answers are made from, nil while this process does not
	// lead, or does not know everything yet.
	Source func() Source
	// Identity is our own name in the Lease, and Leader returns that of the leader
	// as far as it is known.
	Identity string
	Leader   func() string
	// Version is that of the program.
	Version string
}

// Handler serves reports. Who may ask is decided before it is called.
func Handler(o HandlerOptions) http.Handler {
	h := &handler{
		HandlerOptions: o,
		readers:        make(chan struct{}, readers), planners: make(chan struct{}, planners), plans: make(chan struct{}, plans),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+StatusPath, h.leading(h.status))
	mux.HandleFunc("GET "+ExplainPath, h.leading(h.explain))
	mux.HandleFunc("POST "+PlanPath, h.leading(h.plan))
	return mux
}

type handler struct {
	HandlerOptions
	readers, planners, plans chan struct{}
}

// Refusal is the body of every answer that is none.
type Refusal struct {
	// Detail says why, in a sentence.
	Detail string `json:"detail"`
	// Leader is the identity of the leader, where that is another.
	Leader string `json:"leader,omitempty"`
}

// answer makes the body of an answer, or says with which status code it is
// refused.
type answer func(s Source, w http.ResponseWriter, r *http.Request) (any, int, error)

// leading answers only while we lead.
func (h *handler) leading(a answer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		source := h.Source()
		if source == nil {
			write(w, http.StatusServiceUnavailable, h.standby())
			return
		}
		out, code, err := a(source, w, r)
		if err != nil {
			if code == http.StatusTooManyRequests {
				w.Header().Set("Retry-After", "5")
			}
			write(w, code, Refusal{Detail: err.Error()})
			return
		}
		write(w, http.StatusOK, out)
	}
}

var errBusy = errors.New("many such requests are being answered already; try again in a moment")

// enter waits for a slot, but not for long.
func enter(ctx context.Context, slots chan struct{}) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case slots <- struct{}{}:
		return nil
	case <-timer.C:
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// standby says who leads.
func (h *handler) standby() Refusal {
	switch leader := h.Leader(); leader {
	case "":
		return Refusal{Detail: "this process stands by, and does not know who leads"}
	case h.Identity:
		return Refusal{Detail: "this process has begun to lead and does not know everything yet; try again", Leader: leader}
	default:
		return Refusal{Detail: fmt.Sprintf("this process stands by; %q leads", leader), Leader: leader}
	}
}

func (h *handler) sign(o *Origin) { o.Leader, o.Version = h.Identity, h.Version }

func (h *handler) status(s Source, _ http.ResponseWriter, r *http.Request) (any, int, error) {
	if err := enter(r.Context(), h.readers); err != nil {
		return nil, http.StatusTooManyRequests, err
	}
	defer func() { <-h.readers }()
	q := r.URL.Query()
	out := s.Status(q.Get("namespace"), q.Get("all") == "true")
	h.sign(&out.Origin)
	return out, 0, nil
}

func (h *handler) explain(s Source, _ http.ResponseWriter, r *http.Request) (any, int, error) {
	q := r.URL.Query()
	if q.Get("namespace") == "" || q.Get("name") == "" {
		return nil, http.StatusBadRequest, errors.New("namespace and name must be given in the query")
	}
	if err := enter(r.Context(), h.readers); err != nil {
		return nil, http.StatusTooManyRequests, err
	}
	defer func() { <-h.readers }()
	out, err := s.Explain(q.Get("namespace"), q.Get("name"))
	if errors.Is(err, ErrNotFound) {
		return nil, http.StatusNotFound, err
	}
	if err != nil {
		return nil, http.StatusInternalServerError, err
	}
	h.sign(&out.Origin)
	return out, 0, nil
}

func (h *handler) plan(s Source, w http.ResponseWriter, r *http.Request) (any, int, error) {
	select {
	case h.plans <- struct{}{}:
		defer func() { <-h.plans }()
	default:
		return nil, http.StatusTooManyRequests, errBusy
	}
	request, code, err := planRequest(w, r)
	if err != nil {
		return nil, code, err
	}
	if err := enter(r.Context(), h.planners); err != nil {
		return nil, http.StatusTooManyRequests, err
	}
	defer func() { <-h.planners }()
	out, err := s.Plan(r.Context(), request)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, http.StatusNotFound, err
	case err != nil && r.Context().Err() != nil:
		return nil, http.StatusServiceUnavailable, err // nobody waits for it any more
	case err != nil:
		return nil, http.StatusBadRequest, err
	}
	h.sign(&out.Origin)
	return out, 0, nil
}

// planRequest reads a request, before it waits for its turn: one that arrives
// slowly keeps no plan from being made that is there.
func planRequest(w http.ResponseWriter, r *http.Request) (request PlanRequest, code int, err error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime)) // where it can be set
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxPlan))
	d.DisallowUnknownFields()
	if err = d.Decode(&request); err == nil && d.More() {
		err = errors.New("there is more after its end")
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return request, http.StatusRequestEntityTooLarge, fmt.Errorf("the request has more than the %d bytes that it may have", MaxPlan)
	case errors.Is(err, io.EOF):
		return request, http.StatusBadRequest, errors.New("the request is empty: it must be a JSON object with objects or drain")
	case err != nil:
		return request, http.StatusBadRequest, fmt.Errorf("reading the request: %w", err)
	}
	return request, 0, nil
}

func write(w http.ResponseWriter, code int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(data) // whoever asked has gone
}
