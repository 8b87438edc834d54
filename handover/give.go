package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// stepTimeout bounds what the other process may take for each step.
	stepTimeout = 30 * time.Second
	// ServingTimeout bounds what a taker may take from "go" until it serves. It must
	// not be less than what its first table may take: then nobody would serve.
	ServingTimeout = 90 * time.Second
)

// Estate is what a giver tells before its sockets.
type Estate struct {
	// Version is the giver's, for the log.
	Version string `json:"version"`
	// Files names the descriptors that come with it, in their order.
	Files []string `json:"files"`
	// Digests and Epochs are what the files of the clusters hold.
	Digests map[string]string `json:"digests"`
	Epochs  map[string]string `json:"epochs"`
	// Health is what is known about the members.
	Health json.RawMessage `json:"health"`
	// Leaving is what is known about addresses that wait for the end of their
	// connections; givers of before do not tell.
	Leaving json.RawMessage `json:"leaving,omitempty"`
}

// decodeEstate reads an Estate with a number of descriptors.
func decodeEstate(data []byte, files int) (Estate, error) {
	var e Estate
	if err := json.Unmarshal(data, &e); err != nil {
		return Estate{}, fmt.Errorf("estate: %w", err)
	}
	if len(e.Files) != files {
		return Estate{}, fmt.Errorf("estate: names %d descriptors and has %d", len(e.Files), files)
	}
	seen := make(map[string]bool, files)
	for _, name := range e.Files {
		if name == "" || seen[name] {
			return Estate{}, fmt.Errorf("estate: descriptor %q: has no name, or one that is there already", name)
		}
		seen[name] = true
	}
	return e, nil
}

// Giver is an edge that gives its place away.
type Giver interface {
	// Pause makes it neither write nor decide, and returns what it leaves. The
	// descriptors stay the giver's.
	Pause(ctx context.Context) (Estate, []int, error)
	// HandOver stops reading the engine's sockets and sends them.
	HandOver(ctx context.Context, send func(data []byte, files []int) error) error
	// Resume makes it go on after Pause, whatever came of HandOver.
	Resume()
	// Release leaves its place to the other process.
	Release(pid int)
}

// Give gives the giver's place to the process that has said hello. On error the
// giver serves as before.
func (c *Conn) Give(ctx context.Context, g Giver) error {
	// Once begun it comes to an end, which is near.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*stepTimeout)
	defer cancel()
	estate, files, err := g.Pause(ctx)
	if err != nil {
		c.stop(kindRefuse, err)
		return err
	}
	if err := c.give(ctx, g, estate, files); err != nil {
		err = c.lastWords(err)
		if _, told := errors.AsType[*RefusedError](err); !told {
			c.stop(kindAbort, err)
		}
		g.Resume()
		return err
	}
	if err := c.await(); err != nil {
		g.Resume()
		return err
	}
	g.Release(c.peer.pid)
	return nil
}

// lastWords returns what the other process said before it ended, which was the
// reason for err, or else err.
func (c *Conn) lastWords(err error) error {
	if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return err
	}
	c.within(time.Second)
	for {
		m, readErr := c.receive()
		if readErr != nil {
			return err
		}
		closeAll(m.files)
		if m.kind == kindAbort {
			return m.refusal()
		}
	}
}

// give does everything up to "go".
func (c *Conn) give(ctx context.Context, g Giver, estate Estate, files []int) error {
	c.within(stepTimeout)
	if err := c.sendJSON(kindEstate, estate, files...); err != nil {
		return err
	}
	if _, err := c.expect(kindReady); err != nil {
		return err
	}
	err := g.HandOver(ctx, func(data []byte, files []int) error {
		c.within(stepTimeout)
		if err := c.send(message{kind: kindParcel, data: data, files: files}); err != nil {
			return err
		}
		// The kernel limits descriptors that are under way.
		_, err := c.expect(kindGot)
		return err
	})
	if err != nil {
		return err
	}
	c.within(stepTimeout)
	if err := c.send(message{kind: kindEnd}); err != nil {
		return err
	}
	if _, err := c.expect(kindAdopted); err != nil {
		return err
	}
	return c.send(message{kind: kindGo})
}

// await waits until the taker serves, nil, or is dead, which the end of the
// connection tells. One that does neither in time is killed: until then it may
// do what only one of the two may. One that cannot be killed may still come to
// serve, however late.
func (c *Conn) await() error {
	var why error
	ends := false // it has said so, or was killed: it does not serve whatever it has sent
	for {
		c.within(c.servingTimeout())
		m, err := c.receive()
		ne, isNet := errors.AsType[net.Error](err)
		switch {
		case err == nil && m.kind == kindServing && !ends:
			return nil
		case err == nil && m.kind == kindAbort:
			why, ends = m.refusal(), true // its end follows
		case err == nil:
			closeAll(m.files)
		case isNet && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded):
			killErr := c.peer.kill()
			ends = ends || killErr == nil
			switch {
			case why != nil:
			case killErr == nil:
				why = fmt.Errorf("process %d has not served within %s and was killed", c.peer.pid, c.servingTimeout())
			default:
				why = fmt.Errorf("process %d has not served within %s: %w", c.peer.pid, c.servingTimeout(), killErr)
			}
		case why != nil:
			return why
		default:
			return fmt.Errorf("process %d ended before it served", c.peer.pid)
		}
	}
}

func (c *Conn) servingTimeout() time.Duration {
	if c.patience > 0 {
		return c.patience
	}
	return ServingTimeout
}

// Refuse tells whoever has said hello that it gets nothing.
func (c *Conn) Refuse(why error) { c.stop(kindRefuse, why) }
