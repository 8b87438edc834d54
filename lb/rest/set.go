package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/eclusa-lb/eclusa/lb"
)

// maxRounds is how often a Set whose base turns out to be another one starts
// anew. Only the current epoch can write, so that a second time is rare.
const maxRounds = 3

// smallPatch is the size below which a patch is sent without looking whether
// the whole would be smaller.
const smallPatch = 4 << 10

// Set replaces the whole configuration, and sends what differs from what the
// edge holds. What it holds is known from the last Set or fetched first. When
// nothing differs from what the edge has acknowledged in this epoch, nothing is
// sent. A write whose answer was lost is repeated: it is bound to its base, and
// the second one finds that there is nothing left to do.
func (c *Client) Set(ctx context.Context, w lb.Write) (lb.Receipt, error) {
	if !validToken(string(w.Epoch)) {
		return lb.Receipt{}, fmt.Errorf("set with epoch %q, which no claim was answered with: %w", w.Epoch, lb.ErrStaleEpoch)
	}
	if w.Base != "" && !validToken(string(w.Base)) {
		return lb.Receipt{}, fmt.Errorf("set on base %q, which no edge has answered: %w", w.Base, lb.ErrBaseDiffers)
	}
	select {
	case c.writing <- struct{}{}:
		defer func() { <-c.writing }()
	case <-ctx.Done():
		return lb.Receipt{}, fmt.Errorf("wait for another write: %w", ctx.Err())
	}
	var err error
	for range maxRounds {
		var base *held
		if base, err = c.baseFor(ctx, w); err != nil {
			return lb.Receipt{}, err
		}
		var receipt lb.Receipt
		if receipt, err = c.replace(ctx, base, w); err == nil {
			c.learn(&held{config: w.Config, digest: receipt.Digest, receipt: receipt, epoch: w.Epoch, certain: true})
			return receipt, nil
		}
		if !errors.Is(err, lb.ErrBaseDiffers) {
			c.doubt() // it may have been done although no answer came
			return lb.Receipt{}, err
		}
		c.learn(nil)
		if w.Base != "" {
			return lb.Receipt{}, err
		}
	}
	return lb.Receipt{}, err
}

func (c *Client) learn(h *held) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known = h
}

// doubt makes the next Set ask the edge even if it has nothing to change.
func (c *Client) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubtLocked()
}

// doubtLocked is doubt for callers that hold mu. A held is never changed, since
// a Set may be at work with it.
func (c *Client) doubtLocked() {
	if c.known != nil && c.known.certain {
		doubted := *c.known
		doubted.certain = false
		c.known = &doubted
	}
}

// baseFor returns what the edge holds, as far as the write allows: a write that
// names its base is for that one only.
func (c *Client) baseFor(ctx context.Context, w lb.Write) (*held, error) {
	c.mu.Lock()
	known := c.known
	c.mu.Unlock()
	if known != nil && (w.Base == "" || w.Base == known.digest) {
		return known, nil
	}
	h, err := c.fetch(ctx)
	if err != nil {
		return nil, err
	}
	c.learn(h)
	if w.Base != "" && w.Base != h.digest {
		return nil, differs(w.Base, h.digest)
	}
	return h, nil
}

// replace sends the smallest request that turns base into what is wanted.
func (c *Client) replace(ctx context.Context, base *held, w lb.Write) (lb.Receipt, error) {
	if base.digest == "" || base.unreadable != nil {
		return c.put(ctx, base, w, nil)
	}
	patch, err := Diff(base.config, w.Config)
	if err != nil {
		return lb.Receipt{}, fmt.Errorf("set revision %d: %w: %w", w.Config.Revision, err, lb.ErrInvalid)
	}
	// An empty patch asks whether epoch and base still hold, and for the receipt.
	if string(patch) == "{}" && base.certain && base.epoch == w.Epoch {
		return base.receipt, nil
	}
	if len(patch) > smallPatch {
		whole, err := encodeWhole(w.Config)
		if err != nil {
			return lb.Receipt{}, err
		}
		if len(patch) > len(whole)/2 {
			return c.put(ctx, base, w, whole)
		}
	}
	contentType := TypeMergePatch
	if len(w.ConfirmedRemovals) > 0 {
		contentType = TypeWrite
		if patch, err = json.Marshal(writeBody{ConfirmedRemovals: w.ConfirmedRemovals, MergePatch: patch}); err != nil {
			return lb.Receipt{}, fmt.Errorf("encode patch: %w", err)
		}
	}
	return c.write(ctx, request{what: "patch config", method: http.MethodPatch, contentType: contentType, body: patch}, base.digest, w.Epoch)
}

// put sends the whole, which is encoded here unless it was before.
func (c *Client) put(ctx context.Context, base *held, w lb.Write, whole []byte) (lb.Receipt, error) {
	var err error
	if whole == nil {
		if whole, err = encodeWhole(w.Config); err != nil {
			return lb.Receipt{}, err
		}
	}
	contentType := TypeJSON
	if len(w.ConfirmedRemovals) > 0 {
		contentType = TypeWrite
		if whole, err = json.Marshal(writeBody{ConfirmedRemovals: w.ConfirmedRemovals, Config: whole}); err != nil {
			return lb.Receipt{}, fmt.Errorf("encode config: %w", err)
		}
	}
	return c.write(ctx, request{what: "put config", method: http.MethodPut, contentType: contentType, body: whole}, base.digest, w.Epoch)
}

func encodeWhole(config lb.Config) ([]byte, error) {
	whole, err := encodeConfig(config)
	if err != nil {
		return nil, fmt.Errorf("set revision %d: %w: %w", config.Revision, err, lb.ErrInvalid)
	}
	return whole, nil
}

// write sends a PUT or PATCH.
func (c *Client) write(ctx context.Context, r request, base lb.Digest, epoch lb.Epoch) (lb.Receipt, error) {
	r.path, r.limit = clusterPath(c.o.Cluster, nounConfig), maxInfo
	r.header = http.Header{HeaderEpoch: {string(epoch)}}
	if base == "" {
		r.header.Set("If-None-Match", "*")
	} else {
		r.header.Set("If-Match", entityTag(base))
	}
	a, err := c.do(ctx, r)
	if err != nil {
		return lb.Receipt{}, err
	}
	var receipt receiptBody
	if err := c.decode(a, "receipt", &receipt); err != nil {
		return lb.Receipt{}, err
	}
	if !validToken(string(receipt.Digest)) {
		return lb.Receipt{}, c.strange("digest %q", clip(string(receipt.Digest), maxTitle))
	}
	return lb.Receipt(receipt), nil
}
