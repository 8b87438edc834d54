package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/edge"
	"github.com/eclusa-lb/eclusa/edge/page"
)

// newManagement returns the status page and the server of the management
// listener, which has TLS if it was configured.
func newManagement(c ManagementConfig, e *edge.Edge, level zap.AtomicLevel, events *page.Events, log *zap.Logger) (*page.Page, *http.Server, error) {
	access := page.Access{Open: c.Listen.Addr().IsLoopback() && c.TokenFile == "" && c.ClientCAFile == "", Certificate: c.ClientCAFile != ""}
	if c.TokenFile != "" {
		token, err := newToken(c.TokenFile, log)
		if err != nil {
			return nil, nil, err
		}
		access.Token = token.current
		if !c.Listen.Addr().IsLoopback() && c.CertFile == "" {
			log.Warn("the token of the status page crosses the network unencrypted; set management.certFile and management.keyFile", zap.Stringer("listen", c.Listen))
		}
	}
	p, err := page.New(page.Options{Source: e, Events: events, Access: access, Log: log})
	if err != nil {
		return nil, nil, err
	}
	s := &http.Server{
		Handler: withLogLevel(p.Handler(e.Management()), level, log), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: zap.NewStdLog(log),
	}
	if c.CertFile != "" {
		id, err := newIdentity("management", c.CertFile, c.KeyFile, c.ClientCAFile, log)
		if err != nil {
			return nil, nil, err
		}
		s.TLSConfig = id.optional()
	}
	return p, s, nil
}

const (
	// minToken is the length under which a token could be guessed.
	minToken = 16
	// maxToken is the largest token file, in bytes.
	maxToken = 1024
)

// token is the content of a file, read again when that changes. What was read
// last stays in use while it cannot be read.
type token struct {
	file string
	log  *zap.Logger
	now  func() time.Time

	mu     sync.Mutex // guards what follows
	looked time.Time
	seen   fileVersion
	value  []byte
}

// newToken reads the file for the first time.
func newToken(file string, log *zap.Logger) (*token, error) {
	t := &token{file: file, log: log, now: time.Now, looked: time.Now(), seen: versionOf(file)}
	var err error
	t.value, err = t.read()
	return t, err
}

func (t *token) read() ([]byte, error) {
	f, err := os.Open(t.file)
	if err != nil {
		return nil, fmt.Errorf("management.tokenFile: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return nil, fmt.Errorf("management.tokenFile: %w", err)
	}
	value := bytes.TrimSpace(data)
	switch {
	case len(data) > maxToken:
		return nil, fmt.Errorf("management.tokenFile %q: is longer than %d bytes; it must hold a token and nothing else", t.file, maxToken)
	case len(value) < minToken:
		return nil, fmt.Errorf("management.tokenFile %q: the token has %d characters and must have at least %d; make one with: openssl rand -hex 24", t.file, len(value), minToken)
	case bytes.ContainsAny(value, " \t\r\n"):
		return nil, fmt.Errorf("management.tokenFile %q: holds more than one word; it must hold a token and nothing else", t.file)
	}
	return value, nil
}

// current returns the token that is in use now.
func (t *token) current() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	if now.Sub(t.looked) < lookInterval {
		return t.value
	}
	t.looked = now
	seen := versionOf(t.file)
	if seen == t.seen {
		return t.value
	}
	t.seen = seen
	value, err := t.read()
	if err != nil {
		t.log.Error("the token file has changed and cannot be used; the token of before stays in use", zap.Error(err))
		return t.value
	}
	if !bytes.Equal(value, t.value) {
		t.log.Info("the token of the status page has changed; all sessions have ended")
	}
	t.value = value
	return t.value
}
