package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Taker is a process that takes the place of a running edge.
type Taker struct {
	Estate
	conn  *Conn
	files map[string]*os.File
}

// Take asks the running edge for its place. It answers with its estate; what it
// refuses comes back as a *RefusedError. The connection is the Taker's from then
// on, and is never closed on the way: its end tells the other process that this
// one has ended.
func (c *Conn) Take(h Hello) (*Taker, error) {
	h.Protocols, h.Purpose = protocols, TakeOver
	c.within(2 * stepTimeout)
	if err := c.sendJSON(kindHello, h); err != nil {
		return nil, err
	}
	m, err := c.expect(kindEstate)
	if err != nil {
		return nil, err
	}
	e, err := decodeEstate(m.data, len(m.files))
	if err != nil {
		closeAll(m.files)
		c.stop(kindAbort, err)
		return nil, err
	}
	t := &Taker{Estate: e, conn: c, files: make(map[string]*os.File, len(m.files))}
	for i, name := range e.Files {
		t.files[name] = os.NewFile(uintptr(m.files[i]), name)
	}
	return t, nil
}

// File returns a descriptor of the estate, which is the caller's from then on;
// nil if there is none of this name.
func (t *Taker) File(name string) *os.File {
	f := t.files[name]
	delete(t.files, name)
	return f
}

// CloseFiles closes those descriptors of the estate that nobody wanted.
func (t *Taker) CloseFiles() {
	for _, f := range t.files {
		_ = f.Close()
	}
	clear(t.files)
}

// PID returns the process that is taken over from.
func (t *Taker) PID() int { return t.conn.peer.pid }

// Adopt has adopt called with the sockets of the other process, and returns when
// that one has stopped to serve: the caller must serve now, or end.
func (t *Taker) Adopt(ctx context.Context, adopt func(ctx context.Context, receive func() ([]byte, []int, error)) error) error {
	c := t.conn
	c.within(stepTimeout)
	if err := c.send(message{kind: kindReady}); err != nil {
		return err
	}
	if err := adopt(ctx, t.receive); err != nil {
		return err
	}
	c.within(stepTimeout)
	if err := c.send(message{kind: kindAdopted}); err != nil {
		return err
	}
	_, err := c.expect(kindGo)
	return err
}

// receive returns what the next parcel holds, io.EOF after the last.
func (t *Taker) receive() ([]byte, []int, error) {
	c := t.conn
	c.within(stepTimeout)
	m, err := c.receive()
	switch {
	case errors.Is(err, io.EOF):
		return nil, nil, fmt.Errorf("process %d ended in the middle of it", c.peer.pid)
	case err != nil:
		return nil, nil, err
	case m.kind == kindParcel:
		if err := c.send(message{kind: kindGot}); err != nil {
			closeAll(m.files)
			return nil, nil, err
		}
		return m.data, m.files, nil
	case m.kind == kindEnd:
		return nil, nil, io.EOF
	case m.kind == kindAbort:
		return nil, nil, m.refusal()
	}
	closeAll(m.files)
	return nil, nil, fmt.Errorf("wait for a parcel: got %q", m.kind)
}

// Serving tells that this process serves. An error says only that the other one
// did not wait for that.
func (t *Taker) Serving() error {
	t.conn.within(stepTimeout)
	return errors.Join(t.conn.send(message{kind: kindServing}), t.conn.Close())
}

// Fail tells why this process does not take over; it must end then, unless Adopt
// has not been called yet.
func (t *Taker) Fail(why error) { t.conn.stop(kindAbort, why) }

// Outcome is what came of an Upgrade.
type Outcome struct {
	// PID is the new process.
	PID int `json:"pid,omitempty"`
	// Version is that of the new process; edges of before do not tell.
	Version string `json:"version,omitempty"`
	// Error says why there is none, and that the running edge serves as before.
	Error string `json:"error,omitempty"`
	// Took is from the start of the new process until it served.
	Took time.Duration `json:"took,omitempty"`
}

// AskUpgrade asks the running edge to start its program anew and to give it its
// place, and waits for what comes of it.
func (c *Conn) AskUpgrade(ctx context.Context, h Hello) (Outcome, error) {
	h.Protocols, h.Purpose = protocols, Upgrade
	if at, ok := ctx.Deadline(); ok {
		_ = c.unix.SetDeadline(at)
	}
	if err := c.sendJSON(kindHello, h); err != nil {
		return Outcome{}, err
	}
	m, err := c.expect(kindOutcome)
	if err != nil {
		return Outcome{}, err
	}
	var o Outcome
	if err := json.Unmarshal(m.data, &o); err != nil {
		return Outcome{}, fmt.Errorf("outcome: %w", err)
	}
	return o, nil
}

// Tell answers an Upgrade.
func (c *Conn) Tell(o Outcome) error {
	c.within(helloTimeout)
	return c.sendJSON(kindOutcome, o)
}
