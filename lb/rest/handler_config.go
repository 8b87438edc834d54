package rest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"github.com/eclusa-lb/eclusa/lb"
)

func (h *handler) info(c *call) error {
	leave, err := c.tenant.enter(c.tenant.calls, "calls")
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := c.context()
	defer cancel()
	info, err := c.balancer.Info(ctx)
	if err != nil {
		return err
	}
	return c.sendJSON(info)
}

func (h *handler) claim(c *call) error {
	leave, err := c.tenant.enter(c.tenant.claims, "claims")
	if err != nil {
		return err
	}
	defer leave()
	if err := c.accepts(TypeJSON); err != nil {
		return err
	}
	body, err := c.body(maxClaim)
	if err != nil {
		return err
	}
	claim, err := decodeClaim(body)
	if err != nil {
		return err
	}
	ctx, cancel := c.context()
	defer cancel()
	epoch, err := c.balancer.Claim(ctx, claim)
	if err != nil {
		return err
	}
	if !validToken(string(epoch)) {
		return fmt.Errorf("claim of %q: epoch %q cannot be sent in a header", c.cluster, epoch)
	}
	return c.sendJSON(epochBody{epoch})
}

func decodeClaim(body []byte) (lb.Claim, error) {
	var claim lb.Claim
	err := decodeFields("", body, map[string]any{
		"clusterUID": &claim.ClusterUID, "leaseUID": &claim.LeaseUID,
		"leaseTransitions": &claim.LeaseTransitions, "holder": &claim.Holder,
	})
	return claim, err
}

func (h *handler) getConfig(c *call) error {
	leave, err := c.tenant.enter(c.tenant.calls, "calls")
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := c.context()
	defer cancel()
	config, digest, err := c.balancer.Config(ctx)
	if err != nil {
		return err
	}
	body, err := encodeConfig(config)
	if err != nil {
		return fmt.Errorf("encode config of %q: %w", c.cluster, err)
	}
	if digest != "" {
		if err := c.tag(digest); err != nil {
			return err
		}
	}
	c.send(http.StatusOK, TypeJSON, body)
	return nil
}

// tag puts the digest into the answer's ETag.
func (c *call) tag(d lb.Digest) error {
	if !validToken(string(d)) {
		return fmt.Errorf("config of %q: digest %q cannot be sent in a header", c.cluster, d)
	}
	c.w.Header().Set("ETag", entityTag(d))
	return nil
}

func (h *handler) putConfig(c *call) error {
	return c.write(TypeJSON, true, func(_ context.Context, w *lb.Write, doc []byte) error {
		var err error
		w.Config, err = lb.DecodeConfig(doc)
		return err
	})
}

func (h *handler) patchConfig(c *call) error {
	return c.write(TypeMergePatch, false, func(ctx context.Context, w *lb.Write, doc []byte) error {
		base, digest, err := c.balancer.Config(ctx)
		if err != nil {
			return err
		}
		if digest != w.Base {
			return differs(w.Base, digest)
		}
		w.Config, err = ApplyPatch(base, doc)
		return err
	})
}

func differs(want, held lb.Digest) error {
	if held == "" {
		return fmt.Errorf("write on base %q: the edge holds no configuration: %w", want, lb.ErrBaseDiffers)
	}
	return fmt.Errorf("write on base %q: the edge holds %q: %w", want, held, lb.ErrBaseDiffers)
}

// write does what PUT and PATCH share; decode fills in the configuration from
// the document that has the given media type.
func (c *call) write(contentType string, mayCreate bool, decode func(context.Context, *lb.Write, []byte) error) error {
	leave, err := c.enterWrite()
	if err != nil {
		return err
	}
	defer leave()
	// What the header tells is refused before megabytes are read.
	if err := c.accepts(contentType, TypeWrite); err != nil {
		return err
	}
	w, create, err := c.preconditions(mayCreate)
	if err != nil {
		return err
	}
	doc, err := c.body(c.o.MaxBody)
	if err != nil {
		return err
	}
	if mediaType(c.r.Header.Get("Content-Type")) == TypeWrite {
		if doc, w.ConfirmedRemovals, err = unwrap(doc, contentType == TypeMergePatch); err != nil {
			return err
		}
	}
	ctx, cancel := c.context()
	defer cancel()
	unlock, err := c.tenant.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if create {
		if err := c.holdsNothing(ctx); err != nil {
			return err
		}
	}
	if err := decode(ctx, &w, doc); err != nil {
		return err
	}
	receipt, err := c.balancer.Set(ctx, w)
	if err != nil {
		return err
	}
	if err := c.tag(receipt.Digest); err != nil {
		return err
	}
	return c.sendJSON(receiptBody(receipt))
}

// enterWrite takes the slots that a write needs.
func (c *call) enterWrite() (leave func(), err error) {
	leaveCalls, err := c.tenant.enter(c.tenant.calls, "calls")
	if n := c.r.ContentLength; err != nil || n >= 0 && n <= smallBody {
		return leaveCalls, err
	}
	leaveLarge, err := c.tenant.enter(c.tenant.large, "large writes")
	if err != nil {
		leaveCalls()
		return nil, err
	}
	return func() { leaveLarge(); leaveCalls() }, nil
}

// holdsNothing refuses unless the cluster has never written.
func (c *call) holdsNothing(ctx context.Context) error {
	_, held, err := c.balancer.Config(ctx)
	if err == nil && held != "" {
		err = fmt.Errorf("first write: the edge holds %q already: %w", held, lb.ErrBaseDiffers)
	}
	return err
}

// preconditions reads what a write is bound to. create is set if there must be
// no configuration yet.
func (c *call) preconditions(mayCreate bool) (w lb.Write, create bool, err error) {
	required := func(format string, args ...any) error {
		return &refusal{http.StatusPreconditionRequired, nil, fmt.Errorf(format+": %w", append(args, lb.ErrInvalid)...)}
	}
	match, none := c.r.Header.Values("If-Match"), c.r.Header.Values("If-None-Match")
	switch {
	case len(match)+len(none) > 1:
		return w, false, fmt.Errorf("%d preconditions: must be one: %w", len(match)+len(none), lb.ErrInvalid)
	case len(match) == 1:
		var ok bool
		if w.Base, ok = parseEntityTag(match[0]); !ok {
			return w, false, fmt.Errorf(`If-Match %q: must be one entity tag such as "1f2e", as a GET answers it: %w`, clip(match[0], maxTitle), lb.ErrInvalid)
		}
	case len(none) == 1 && mayCreate && none[0] == "*":
		create = true
	case mayCreate:
		return w, false, required(`no precondition: a PUT needs If-Match with the entity tag of what it replaces, or "If-None-Match: *"`)
	default:
		return w, false, required("no precondition: a PATCH needs If-Match with the entity tag of its base")
	}
	epoch := c.r.Header.Values(HeaderEpoch)
	if len(epoch) != 1 || !validToken(epoch[0]) {
		return w, false, required("header %s: a write needs it once, with the epoch that the claim was answered with", HeaderEpoch)
	}
	w.Epoch = lb.Epoch(epoch[0])
	return w, create, nil
}

// accepts checks the content type and that the body is not encoded further.
func (c *call) accepts(types ...string) error {
	unsupported := func(what string) error {
		header := map[string]string{"Accept": strings.Join(types, ", ")}
		if c.r.Method == http.MethodPatch {
			header = map[string]string{"Accept-Patch": strings.Join(types, ", ")}
		}
		return &refusal{http.StatusUnsupportedMediaType, header, fmt.Errorf("%s: %w", what, lb.ErrInvalid)}
	}
	given := c.r.Header.Get("Content-Type")
	if !slices.Contains(types, mediaType(given)) {
		return unsupported(fmt.Sprintf("content type %q: must be %s", clip(given, maxTitle), strings.Join(types, " or ")))
	}
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return unsupported(fmt.Sprintf("content encoding %q: must be none", clip(encoding, maxTitle)))
	}
	return nil
}

// body reads the request's body.
func (c *call) body(most int64) ([]byte, error) {
	tooLarge := &refusal{http.StatusRequestEntityTooLarge, map[string]string{"Connection": "close"},
		fmt.Errorf("body: larger than %d bytes: %w", most, lb.ErrExhausted)}
	if c.r.ContentLength > most {
		return nil, tooLarge
	}
	var buf bytes.Buffer
	buf.Grow(int(min(max(c.r.ContentLength, 0), 1<<20)) + bytes.MinRead)
	_, err := buf.ReadFrom(http.MaxBytesReader(c.w, c.r.Body, most))
	if err == nil {
		return buf.Bytes(), nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, &refusal{http.StatusRequestTimeout, map[string]string{"Connection": "close"},
			fmt.Errorf("body: only %d bytes came within %s: %w", buf.Len(), c.o.BodyTimeout, lb.ErrInvalid)}
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &refusal{http.StatusBadRequest, map[string]string{"Connection": "close"},
			fmt.Errorf("body: truncated, %d of %d bytes came: %w", buf.Len(), c.r.ContentLength, lb.ErrInvalid)}
	}
	return nil, fmt.Errorf("body: after %d bytes: %w: %w", buf.Len(), err, lb.ErrInvalid)
}

// unwrap takes a TypeWrite apart.
func unwrap(body []byte, patch bool) (doc []byte, confirmed []string, err error) {
	var w writeBody
	fields := map[string]any{"confirmedRemovals": &w.ConfirmedRemovals, "config": &w.Config}
	name, value := "config", &w.Config
	if patch {
		name, value = "mergePatch", &w.MergePatch
		delete(fields, "config")
		fields[name] = value
	}
	if err := decodeFields("", body, fields); err != nil {
		return nil, nil, err
	}
	if *value == nil {
		return nil, nil, fmt.Errorf("body: %q is missing: %w", name, lb.ErrInvalid)
	}
	return *value, w.ConfirmedRemovals, nil
}
