package page

import (
	"fmt"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Bounds of what is kept: 4 MB if every text was as long as it can be, and 150 kB
// with the texts that an edge writes.
const (
	maxEvents = 200 // of good news, and as many of bad
	maxFields = 12
	maxText   = 400 // bytes
)

// Event is something important that the edge has logged.
type Event struct {
	At time.Time `json:"at"`
	// Level is "info", "warn" or "error".
	Level string `json:"level"`
	Text  string `json:"text"`
	// Fields say what the text is about, in the order in which they were logged.
	Fields []Field `json:"fields,omitempty"`
}

// Field is one detail of an Event.
type Field struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Events keeps the last events. Warnings and errors are kept apart, so that a
// busy day does not push out what went wrong. It may be used concurrently.
type Events struct {
	mu        sync.Mutex // guards what follows
	good, bad []Event    // oldest first
}

// NewEvents returns Events without any.
func NewEvents() *Events { return &Events{} }

// Watch returns a logger that does what log does, and beside it keeps what is
// logged at level info or above, whatever the level of log.
func (e *Events) Watch(log *zap.Logger) *zap.Logger {
	return log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, &eventCore{events: e}) }))
}

// Last returns the newest n events, newest first.
func (e *Events) Last(n int) []Event {
	e.mu.Lock()
	all := slices.Concat(e.good, e.bad)
	e.mu.Unlock()
	slices.SortStableFunc(all, func(a, b Event) int { return b.At.Compare(a.At) })
	return all[:min(n, len(all))]
}

func (e *Events) add(event Event, bad bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := &e.good
	if bad {
		list = &e.bad
	}
	// Strangers can have this one logged as often as they have addresses.
	if event.Text == wrongToken {
		*list = slices.DeleteFunc(*list, func(e Event) bool { return e.Text == wrongToken })
	}
	if len(*list) >= maxEvents {
		*list = slices.Delete(*list, 0, 1)
	}
	*list = append(*list, event)
}

// eventCore is a zapcore.Core that keeps events.
type eventCore struct {
	events *Events
	fields []Field
}

var _ zapcore.Core = (*eventCore)(nil)

func (c *eventCore) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

func (c *eventCore) With(fields []zapcore.Field) zapcore.Core {
	return &eventCore{events: c.events, fields: appendFields(slices.Clip(c.fields), fields)}
}

func (c *eventCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

func (c *eventCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.events.add(Event{At: e.Time, Level: e.Level.String(), Text: cut(e.Message), Fields: appendFields(slices.Clip(c.fields), fields)},
		e.Level >= zapcore.WarnLevel)
	return nil
}

func (c *eventCore) Sync() error { return nil }

// appendFields adds what fields say, as text.
func appendFields(to []Field, fields []zapcore.Field) []Field {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		if len(to) >= maxFields {
			break
		}
		f.AddTo(m)
		// Errors add a second key with every detail of theirs; one is enough.
		v, ok := m.Fields[f.Key]
		if !ok || v == nil || v == "" {
			continue
		}
		to = append(to, Field{Key: cut(f.Key), Value: cut(fmt.Sprint(v))})
	}
	return to
}

// cut shortens a text to maxText bytes.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	s = s[:maxText-len("…")]
	for len(s) > 0 && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
