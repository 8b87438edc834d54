package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// ClientOptions configure a Client. Endpoint, ServerName, Cluster, Certificate
// and RootCAs are required.
type ClientOptions struct {
	// Endpoint is where the edge listens: "https://host:port" and nothing more.
	Endpoint string
	// ServerName is the name that the edge's certificate must have, whatever the
	// host of Endpoint is.
	ServerName string
	// Cluster is the common name of Certificate.
	Cluster lb.Cluster
	// Certificate and RootCAs are called for each new connection, so that a
	// renewed certificate or another CA is used by the next one.
	Certificate func() (*tls.Certificate, error)
	RootCAs     func() (*x509.CertPool, error)
	// Timeout is how long a call may take with all its attempts, a poll of the
	// status on top of its wait; 0 means 30 s.
	Timeout time.Duration
	// PollWait is how long Status asks the edge to wait for a change, at most
	// MaxWait; 0 means 30 s.
	PollWait time.Duration
	// Log gets every attempt at debug level; nil means nowhere.
	Log *zap.Logger
}

// Client is an edge somewhere else. It keeps one connection alive, follows no
// redirect and no proxy, and gives each call a deadline. Set works out what to
// send; calls of Set wait for one another.
type Client struct {
	o    ClientOptions
	base string // the endpoint
	host string // for messages
	http *retryablehttp.Client

	writing chan struct{} // held by the Set under way

	mu    sync.Mutex
	known *held          // what the edge holds as far as we know, nil if we do not
	last  lb.StatusDelta // the newest status, without its entries
}

var _ lb.Balancer = (*Client)(nil)

// NewClient returns a client that has not connected to anything.
func NewClient(o ClientOptions) (*Client, error) {
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the text, which may hold a password
		}
		return nil, fmt.Errorf("endpoint: %w: %w", err, lb.ErrInvalid)
	}
	if u.Scheme != "https" || u.Hostname() == "" || u.Port() == "" || u.User != nil ||
		(u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, fmt.Errorf(`endpoint %q: must be "https://host:port" and nothing more: %w`, u.Redacted(), lb.ErrInvalid)
	}
	switch {
	case o.ServerName == "":
		return nil, fmt.Errorf("server name of endpoint %q: must be a name in the edge's certificate: %w", o.Endpoint, lb.ErrInvalid)
	case o.Cluster == "" || o.Cluster == "." || o.Cluster == "..":
		return nil, fmt.Errorf("cluster %q: must be the common name of the client certificate: %w", o.Cluster, lb.ErrInvalid)
	case o.Certificate == nil || o.RootCAs == nil:
		return nil, fmt.Errorf("endpoint %q: certificate and CA are required: %w", o.Endpoint, lb.ErrInvalid)
	}
	o.Timeout = orDefault(o.Timeout, 30*time.Second)
	o.PollWait = orDefault(o.PollWait, defaultWait)
	if o.PollWait < 0 || o.PollWait > MaxWait {
		return nil, fmt.Errorf("poll wait %s: must be from 0s to %s: %w", o.PollWait, MaxWait, lb.ErrInvalid)
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Client{o: o, base: "https://" + u.Host, host: u.Host, http: newHTTPClient(o), writing: make(chan struct{}, 1)}, nil
}

// Close lets go of the connection. The client can be used again afterwards.
func (c *Client) Close() { c.http.HTTPClient.CloseIdleConnections() }

// Info asks what the edge is and can do.
func (c *Client) Info(ctx context.Context) (lb.Info, error) {
	a, err := c.do(ctx, request{what: "get info", method: http.MethodGet, path: pathInfo, limit: maxInfo})
	if err != nil {
		return lb.Info{}, err
	}
	var info lb.Info
	return info, c.decode(a, "info", &info)
}

// Claim makes the caller the only writer of the cluster. It is sent again only
// when the edge has answered that it was too busy.
func (c *Client) Claim(ctx context.Context, claim lb.Claim) (lb.Epoch, error) {
	body, err := json.Marshal(claim)
	if err != nil {
		return "", fmt.Errorf("encode claim: %w", err)
	}
	a, err := c.do(ctx, request{
		what: "claim", method: http.MethodPost, path: clusterPath(c.o.Cluster, nounLease),
		contentType: TypeJSON, body: body, limit: maxInfo,
	})
	if err != nil {
		return "", err
	}
	var answer epochBody
	if err := c.decode(a, "epoch", &answer); err != nil {
		return "", err
	}
	if !validToken(string(answer.Epoch)) {
		return "", c.strange("epoch %q", clip(string(answer.Epoch), maxTitle))
	}
	return answer.Epoch, nil
}

// Config fetches what the edge holds, always from the edge.
func (c *Client) Config(ctx context.Context) (lb.Config, lb.Digest, error) {
	h, err := c.fetch(ctx)
	if err != nil {
		return lb.Config{}, "", err
	}
	if h.unreadable != nil {
		return lb.Config{}, "", c.strange("configuration that this version cannot read: %v", h.unreadable)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known != nil && c.known.digest != h.digest {
		c.doubtLocked()
	}
	return h.config, h.digest, nil
}

// Status polls for what changed after the cursor.
func (c *Client) Status(ctx context.Context, after lb.Cursor) (lb.StatusDelta, error) {
	query := url.Values{"wait": {c.o.PollWait.String()}}
	if validToken(string(after)) { // what is none, is unknown to the edge as well
		query.Set("after", string(after))
	} else {
		after = ""
	}
	a, err := c.do(ctx, request{
		what: "get status", method: http.MethodGet, path: clusterPath(c.o.Cluster, nounStatus), query: query,
		limit: maxAnswer, wait: c.o.PollWait,
	})
	if err != nil {
		return lb.StatusDelta{}, err
	}
	if a.status == http.StatusNoContent {
		c.mu.Lock()
		last := c.last
		c.mu.Unlock()
		switch after {
		case last.Cursor:
			return last, nil
		case "":
			return lb.StatusDelta{}, c.strange("no status within %s", c.o.PollWait)
		default: // not a cursor that this client was given last, so it gets everything
			return c.Status(ctx, "")
		}
	}
	var delta lb.StatusDelta
	if err := c.decode(a, "status", &delta); err != nil {
		return lb.StatusDelta{}, err
	}
	if !validToken(string(delta.Cursor)) {
		return lb.StatusDelta{}, c.strange("cursor %q", clip(string(delta.Cursor), maxTitle))
	}
	c.observe(delta)
	return delta, nil
}

// decode reads an answer. Fields that a newer edge adds are passed over.
func (c *Client) decode(a answer, what string, v any) error {
	if got := mediaType(a.header.Get("Content-Type")); got != TypeJSON {
		return c.strange("%s of content type %q", what, clip(got, maxTitle))
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return c.strange("%s that cannot be read: %v", what, err)
	}
	return nil
}

// strange is the error for an answer that an edge should never give.
func (c *Client) strange(format string, args ...any) error {
	return fmt.Errorf("edge %q on %s answered with %s", c.o.ServerName, c.host, fmt.Sprintf(format, args...))
}

// held is what an edge holds.
type held struct {
	config lb.Config
	digest lb.Digest // empty: nothing
	// unreadable is set if config could not be decoded.
	unreadable error
	// receipt is the answer to the write that put it there, in epoch, and certain
	// that nothing spoke against it since. Without it the edge has to be asked.
	receipt lb.Receipt
	epoch   lb.Epoch
	certain bool
}

// fetch asks the edge what it holds.
func (c *Client) fetch(ctx context.Context) (*held, error) {
	a, err := c.do(ctx, request{what: "get config", method: http.MethodGet, path: clusterPath(c.o.Cluster, nounConfig), limit: maxAnswer})
	if err != nil {
		return nil, err
	}
	if got := mediaType(a.header.Get("Content-Type")); got != TypeJSON {
		return nil, c.strange("config of content type %q", clip(got, maxTitle))
	}
	h := &held{}
	if tag := a.header.Get("ETag"); tag != "" {
		var ok bool
		if h.digest, ok = parseEntityTag(tag); !ok {
			return nil, c.strange("entity tag %q", clip(tag, maxTitle))
		}
	}
	h.config, h.unreadable = lb.DecodeConfig(a.body)
	return h, nil
}

// observe compares what a status tells with what we know.
func (c *Client) observe(d lb.StatusDelta) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = d
	c.last.Full, c.last.LoadBalancers, c.last.Checks = false, nil, nil
	if c.known != nil && (d.Digest != c.known.digest || d.Epoch != c.known.epoch || !d.Durable) {
		c.doubtLocked() // perhaps only overtaken by our own write: then it costs one small request
	}
}

// errTimeout is what a call ends with that had its time.
var errTimeout = errors.New("no answer in time")
