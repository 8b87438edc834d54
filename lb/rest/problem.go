package rest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

// typePrefix and the name of a kind make the type of a problem.
const typePrefix = "urn:eclusa:problem:"

// typeBlank is the type of problems that say no more than their status.
const typeBlank = "about:blank"

// kinds is the one place where errors become problems and problems errors. The
// first row whose error matches decides, so kinds come before what they wrap.
var kinds = []struct {
	err    error
	name   string
	status int
	title  string
}{
	{lb.ErrStaleEpoch, "stale-epoch", http.StatusConflict, "The epoch is not the current one."},
	{lb.ErrBaseDiffers, "base-differs", http.StatusPreconditionFailed, "The configuration is not the one that the write was meant to replace."},
	{lb.ErrRemovalHeld, "removal-held", http.StatusConflict, "Too much would be removed without confirmation."},
	{lb.ErrAddressHeld, "address-held", http.StatusConflict, "The address belongs to somebody else."},
	{lb.ErrConflict, "conflict", http.StatusConflict, "Somebody else was there first."},
	{lb.ErrInvalid, "invalid", http.StatusBadRequest, "The request is wrong in itself."},
	{lb.ErrUnsupported, "unsupported", http.StatusUnprocessableEntity, "The edge lacks what was asked."},
	{lb.ErrExhausted, "exhausted", http.StatusRequestEntityTooLarge, "A limit is reached."},
	{lb.ErrNotFound, "not-found", http.StatusNotFound, "What the request names does not exist."},
}

// Problem is an RFC 9457 problem document.
type Problem struct {
	// Type is "urn:eclusa:problem:" with the kind's name, or "about:blank" for
	// what the status says well enough.
	Type string `json:"type"`
	// Title is the same sentence for every problem of the type.
	Title string `json:"title,omitempty"`
	// Status is the status code of the answer.
	Status int `json:"status,omitempty"`
	// Detail says what is wrong with this request.
	Detail string `json:"detail,omitempty"`
	// RequestID finds the whole reason of an internal error in the edge's log.
	RequestID string `json:"requestID,omitempty"`
	// Keys and Largest are those of an [lb.RemovalHeldError].
	Keys    []string `json:"keys,omitempty"`
	Largest int      `json:"largest,omitempty"`
}

// ProblemError is an edge's refusal, as a [Client] returns it. errors.Is finds
// the kind of package lb, errors.As the [lb.RemovalHeldError].
type ProblemError struct {
	// Call is what was refused, such as `put config of cluster "a" on edge-1:8443`.
	Call string
	// Problem is what the edge answered.
	Problem Problem

	cause error
}

// Error tells the call, the refusal's detail and, unless the detail ends with
// it, the kind.
func (e *ProblemError) Error() string {
	detail := quoteControls(e.Problem.Detail)
	if detail == "" {
		detail = strconv.Itoa(e.Problem.Status) + " " + quoteControls(e.Problem.Title)
	}
	if e.cause != nil {
		if kind := kindOf(e.cause).Error(); !strings.HasSuffix(detail, kind) {
			detail += ": " + kind
		}
	} else {
		detail = fmt.Sprintf("refused with status %d: %s", e.Problem.Status, detail)
	}
	if e.Problem.RequestID != "" {
		detail += fmt.Sprintf(" (request %q in the edge's log)", e.Problem.RequestID)
	}
	return e.Call + ": " + detail
}

// Unwrap returns the error of package lb that the problem stands for, or nil.
func (e *ProblemError) Unwrap() error { return e.cause }

// kindOf returns the sentinel that err is, or nil.
func kindOf(err error) error {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.err
		}
	}
	return nil
}

// problemOf returns the problem for err. It is false for an error of no known
// kind, which is nobody's affair but the edge's.
func problemOf(err error) (Problem, bool) {
	for _, k := range kinds {
		if !errors.Is(err, k.err) {
			continue
		}
		p := Problem{Type: typePrefix + k.name, Title: k.title, Status: k.status, Detail: err.Error()}
		if held, ok := errors.AsType[*lb.RemovalHeldError](err); ok {
			p.Keys, p.Largest = held.Keys, held.Largest
		}
		return p, true
	}
	return Problem{}, false
}

// errorOf returns the error that p stands for.
func errorOf(call string, p Problem) error {
	e := &ProblemError{Call: call, Problem: p}
	name, ok := strings.CutPrefix(p.Type, typePrefix)
	if !ok {
		return e
	}
	for _, k := range kinds {
		if k.name == name {
			e.cause = k.err
		}
	}
	if errors.Is(e.cause, lb.ErrRemovalHeld) {
		e.cause = &lb.RemovalHeldError{Keys: p.Keys, Largest: p.Largest}
	}
	return e
}

// decodeProblem reads the body of an answer that is no success. Whatever the
// body is, there is a problem afterwards: something between the two ends may
// have answered in the edge's place.
func decodeProblem(status int, contentType string, body []byte) Problem {
	if mediaType(contentType) == TypeProblem {
		var p Problem
		if err := json.Unmarshal(body, &p); err == nil {
			p.Status = status
			p.Title, p.Detail = clip(p.Title, maxTitle), clip(p.Detail, maxDetail)
			p.RequestID = clip(p.RequestID, maxTitle)
			return p
		}
	}
	title := http.StatusText(status)
	if title == "" {
		title = "unknown status"
	}
	p := Problem{Type: typeBlank, Title: title, Status: status, Detail: title}
	if len(body) > 0 {
		p.Detail = fmt.Sprintf("%s, not a problem document: %q", title, clip(string(body), maxTitle))
	}
	return p
}

// Lengths of texts that come from the other end, in bytes.
const (
	maxTitle  = 200
	maxDetail = 4096
)

// clip bounds a text from the other end.
func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// quoteControls keeps a text from the other end on one line.
func quoteControls(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			q := strconv.Quote(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}
