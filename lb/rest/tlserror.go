package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// describe turns an error of the transport into a sentence that says what to do
// about it.
func (c *Client) describe(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if cause := context.Cause(ctx); errors.Is(cause, errTimeout) {
			return fmt.Errorf("%w: %w", cause, ctx.Err())
		}
		return ctx.Err()
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // method and URL are told already
	}
	if text := describeTLS(err, c.o.ServerName); text != "" {
		return &tlsError{text, err}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		// The alert that tells about our certificate may be lost in the reset.
		return fmt.Errorf("edge closed the connection (if it does so each time, see its log for what it has against our certificate): %w", err)
	}
	return err
}

// tlsError replaces the text of an error and keeps its chain.
type tlsError struct {
	text string
	err  error
}

func (e *tlsError) Error() string { return e.text }
func (e *tlsError) Unwrap() error { return e.err }

// describeTLS says what is wrong with the certificate of either side, or returns
// nothing if that is not the trouble.
func describeTLS(err error, serverName string) string {
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("certificate of the edge is for %s and not for the expected name %q", namesOf(e.Certificate), serverName)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return describeInvalid(e)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Sprintf("certificate of the edge%s is not from the configured CA", issuerOf(err))
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Sprintf("certificate of the edge cannot be verified: %v", e.Err)
	}
	if e, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return fmt.Sprintf("what listens there does not speak TLS: it answered with %q", e.RecordHeader[:])
	}
	text := err.Error()
	if strings.Contains(text, "server gave HTTP response to HTTPS client") {
		return "what listens there does not speak TLS: it answered in plain HTTP"
	}
	if strings.Contains(text, "http2: client conn could not be established") { // its cause is lost there
		return "edge closed the connection directly after the handshake, most likely because it refuses our certificate (the reason is in the edge's log)"
	}
	if _, alert, ok := strings.Cut(text, "remote error: tls: "); ok {
		if strings.Contains(alert, "certificate") {
			return fmt.Sprintf("edge refused our certificate: %s (the reason is in the edge's log)", alert)
		}
		return "edge refused the handshake: " + alert
	}
	if strings.Contains(text, "tls: ") {
		return "handshake: " + text
	}
	return ""
}

func describeInvalid(e x509.CertificateInvalidError) string {
	if e.Reason == x509.Expired && e.Cert != nil {
		now := time.Now()
		if now.Before(e.Cert.NotBefore) {
			return fmt.Sprintf("certificate of the edge is not valid before %s and it is %s (is a clock wrong?)", stamp(e.Cert.NotBefore), stamp(now))
		}
		return fmt.Sprintf("certificate of the edge expired at %s", stamp(e.Cert.NotAfter))
	}
	return fmt.Sprintf("certificate of the edge is not acceptable: %v", e)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// namesOf lists what a certificate is for.
func namesOf(cert *x509.Certificate) string {
	if cert == nil {
		return "nobody"
	}
	const shown = 8
	var names []string
	for _, n := range cert.DNSNames {
		names = append(names, fmt.Sprintf("%q", clip(n, maxTitle)))
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	switch {
	case len(names) == 0:
		return fmt.Sprintf("no name (common name %q, which does not count)", clip(cert.Subject.CommonName, maxTitle))
	case len(names) > shown:
		return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
	}
	return strings.Join(names, ", ")
}

// issuerOf tells who has signed the certificate that was not accepted.
func issuerOf(err error) string {
	e, ok := errors.AsType[*tls.CertificateVerificationError](err)
	if !ok || len(e.UnverifiedCertificates) == 0 {
		return ""
	}
	cert := e.UnverifiedCertificates[0]
	return fmt.Sprintf(" (%s, issued by %q)", namesOf(cert), clip(cert.Issuer.CommonName, maxTitle))
}
