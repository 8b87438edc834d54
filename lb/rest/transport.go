package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/hashicorp/go-retryablehttp"
)

// Retries bridge a moment, not an outage: the caller has a schedule of its own.
const (
	maxRetries   = 2
	retryWaitMin = 100 * time.Millisecond
	retryWaitMax = time.Second
	// maxRetryAfter is the longest that a call waits because the edge said so.
	maxRetryAfter = 5 * time.Second
)

// Limits of a connection.
const (
	dialTimeout      = 3 * time.Second
	handshakeTimeout = 5 * time.Second
)

func newHTTPClient(o ClientOptions) *retryablehttp.Client {
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}
	return &retryablehttp.Client{
		HTTPClient: &http.Client{
			Transport: &http.Transport{
				Proxy: nil, // what lies between us and the edge is none of the environment's business
				DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := dialer.DialContext(ctx, network, addr)
					if err != nil {
						return nil, err
					}
					return handshake(ctx, conn, o)
				},
				ForceAttemptHTTP2:      true,
				DisableCompression:     true,
				MaxIdleConnsPerHost:    2, // over HTTP/1.1 one polls and one writes
				IdleConnTimeout:        5 * time.Minute,
				MaxResponseHeaderBytes: 64 << 10,
				HTTP2: &http.HTTP2Config{ // a peer that is gone is noticed before the poll's time is over
					SendPingTimeout:  10 * time.Second,
					PingTimeout:      5 * time.Second,
					WriteByteTimeout: 15 * time.Second,
				},
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		Logger:       retryLog{o.Log.Sugar()},
		RetryMax:     maxRetries,
		RetryWaitMin: retryWaitMin,
		RetryWaitMax: retryWaitMax,
		CheckRetry:   checkRetry,
		Backoff:      backoff,
		ErrorHandler: retryablehttp.PassthroughErrorHandler,
	}
}

// handshake makes conn a TLS connection with the certificates of the moment.
func handshake(ctx context.Context, conn net.Conn, o ClientOptions) (net.Conn, error) {
	roots, err := o.RootCAs()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("read CA: %w", err)
	}
	config := &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: o.ServerName,
		RootCAs:    roots,
		NextProtos: []string{"h2", "http/1.1"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return o.Certificate()
		},
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return secured, nil
}

// repeatable marks contexts of calls that may be sent again when no answer came.
type repeatable struct{}

// checkRetry repeats what the edge had no time for, and what got no answer if
// that does no harm.
func checkRetry(ctx context.Context, resp *http.Response, err error) (bool, error) {
	if err != nil {
		may, _ := ctx.Value(repeatable{}).(bool)
		return may && ctx.Err() == nil && !permanent(err), nil
	}
	if resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable {
		return retryAfter(resp) <= maxRetryAfter, nil
	}
	return false, nil
}

// permanent reports whether the next attempt would fail for the same reason, or
// take as long.
func permanent(err error) bool {
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		return true
	}
	return describeTLS(err, "") != ""
}

// backoff waits as long as the edge asks for, and else a random time that grows.
func backoff(least, most time.Duration, attempt int, resp *http.Response) time.Duration {
	wait := min(least<<attempt, most)
	wait = wait/2 + rand.N(wait) //nolint:gosec // nobody gains from guessing it
	return max(wait, retryAfter(resp))
}

// retryAfter returns what the edge asks to wait.
func retryAfter(resp *http.Response) time.Duration {
	if resp == nil {
		return 0
	}
	seconds, err := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16)
	if err != nil {
		return 0
	}
	return time.Duration(seconds) * time.Second
}

// request is one call of the protocol.
type request struct {
	what        string // for messages: "put config"
	method      string
	path        string
	query       url.Values
	header      http.Header
	contentType string
	body        []byte
	limit       int64         // of the answer's body, bytes
	wait        time.Duration // that the edge may take on top of the timeout
}

// answer is a success with its whole body.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// do makes a call, with retries where they are harmless. A refusal is a
// *ProblemError.
func (c *Client) do(ctx context.Context, r request) (answer, error) {
	call := fmt.Sprintf("%s of cluster %q on edge %q at %s", r.what, c.o.Cluster, c.o.ServerName, c.host)
	timeout := c.o.Timeout + r.wait
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w (%s)", errTimeout, timeout))
	defer cancel()
	// Polls are not repeated: their caller does nothing else.
	if r.method != http.MethodPost && r.wait == 0 {
		ctx = context.WithValue(ctx, repeatable{}, true)
	}
	target := c.base + r.path
	if r.query != nil {
		target += "?" + r.query.Encode()
	}
	var body any
	if r.body != nil {
		body = r.body
	}
	req, err := retryablehttp.NewRequestWithContext(ctx, r.method, target, body)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", call, err)
	}
	for k, v := range r.header {
		req.Header[k] = v
	}
	req.Header.Set("Accept", TypeJSON+", "+TypeProblem)
	if r.contentType != "" {
		req.Header.Set("Content-Type", r.contentType)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{}, fmt.Errorf("%s: %w", call, c.describe(ctx, err))
	}
	defer resp.Body.Close()
	return c.read(ctx, call, resp, r.limit)
}

// read reads an answer.
func (c *Client) read(ctx context.Context, call string, resp *http.Response, limit int64) (answer, error) {
	success := resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusNoContent
	if !success {
		limit = maxProblem
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	switch {
	case err != nil:
		return answer{}, fmt.Errorf("%s: answer cut after %d bytes: %w", call, len(body), c.describe(ctx, err))
	case int64(len(body)) > limit:
		return answer{}, fmt.Errorf("%s: answer is larger than %d bytes", call, limit)
	case resp.StatusCode >= 300 && resp.StatusCode < 400:
		return answer{}, fmt.Errorf("%s: answer %d is a redirect to %q, which is never followed", call, resp.StatusCode, clip(resp.Header.Get("Location"), maxTitle))
	case !success:
		return answer{}, errorOf(call, decodeProblem(resp.StatusCode, resp.Header.Get("Content-Type"), body))
	}
	return answer{resp.StatusCode, resp.Header, body}, nil
}
