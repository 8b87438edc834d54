package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// defaultWait is how long a poll waits that does not say.
const defaultWait = 30 * time.Second

// minWait leaves a balancer the time to look, however short the poll.
const minWait = 50 * time.Millisecond

// status answers a poll: with changes, with what the balancer says after it has
// waited long enough for its own taste, or with 204 when the poll's time is over.
func (h *handler) status(c *call) error {
	after, wait, err := parsePoll(c.r.URL.RawQuery)
	if err != nil {
		return err
	}
	leave, err := c.tenant.enter(c.tenant.polls, "polls")
	if err != nil {
		return err
	}
	defer leave()
	// Deadlines of the connection must not end the wait.
	_ = c.conn.SetReadDeadline(time.Time{})
	_ = c.conn.SetWriteDeadline(time.Now().Add(wait + 2*h.o.CallTimeout))
	ctx, cancel := context.WithTimeout(c.r.Context(), max(wait, minWait))
	defer cancel()
	defer onShutdown(c.r.Context(), cancel)()

	if !pause(ctx, c.tenant.gap(after)) {
		return c.unchanged()
	}
	delta, err := c.balancer.Status(ctx, after)
	switch {
	case err != nil && ctx.Err() != nil && errors.Is(err, ctx.Err()):
		return c.unchanged()
	case err != nil:
		return err
	}
	if delta.Cursor != after {
		c.tenant.gave(delta.Cursor)
	}
	return c.sendJSON(delta)
}

// unchanged ends a poll that has nothing to tell.
func (c *call) unchanged() error {
	if c.r.Context().Err() != nil {
		return c.r.Context().Err()
	}
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// pause reports whether the time passed before the context ended.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// parsePoll reads the query of a poll.
func parsePoll(query string) (lb.Cursor, time.Duration, error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return "", 0, fmt.Errorf("query: %w: %w", err, lb.ErrInvalid)
	}
	after, wait := lb.Cursor(""), defaultWait
	for key, v := range values {
		switch {
		case key != "after" && key != "wait":
			return "", 0, fmt.Errorf("query: unknown parameter %q: must be after or wait: %w", clip(key, maxTitle), lb.ErrInvalid)
		case len(v) != 1:
			return "", 0, fmt.Errorf("query: %s is there %d times: %w", key, len(v), lb.ErrInvalid)
		case key == "wait":
			wait, err = time.ParseDuration(v[0])
			if err != nil || wait < 0 || wait > MaxWait {
				return "", 0, fmt.Errorf(`query: wait %q: must be from "0s" to "%s": %w`, clip(v[0], maxTitle), MaxWait, lb.ErrInvalid)
			}
		case v[0] != "" && !validToken(v[0]):
			return "", 0, fmt.Errorf("query: after %q: must be a cursor that this edge has answered: %w", clip(v[0], maxTitle), lb.ErrInvalid)
		default:
			after = lb.Cursor(v[0])
		}
	}
	return after, wait, nil
}
