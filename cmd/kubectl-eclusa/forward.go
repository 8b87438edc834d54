package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// forward opens a way to a port of a pod through the API server, and returns
// where it begins and how to close it.
func (c *cluster) forward(ctx context.Context, pod *v1.Pod, port string) (*url.URL, func(), error) {
	target := c.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	roundTripper, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, nil, err
	}
	old := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, target)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerForStreaming(target, c.config)
	if err != nil {
		return nil, nil, err
	}
	dialer := portforward.NewFallbackDialerForStreaming(tunnel, old, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	stop, ready := make(chan struct{}), make(chan struct{})
	var complaints safeBuffer
	f, err := portforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:" + port}, stop, ready, io.Discard, &complaints)
	if err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- f.ForwardPorts() }()
	end := func() { close(stop); <-ended } //nolint:errcheck // the tunnel is closed on purpose
	select {
	case <-ready:
	case err := <-ended:
		return nil, nil, errors.Join(err, complaints.err())
	case <-ctx.Done():
		close(stop)
		return nil, nil, ctx.Err()
	}
	ports, err := f.GetPorts()
	if err != nil {
		end()
		return nil, nil, err
	}
	return &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", ports[0].Local)}, end, nil
}

// safeBuffer is a buffer for several goroutines.
type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write appends.
func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// err returns what was written as an error, nil if nothing was.
func (b *safeBuffer) err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() == 0 {
		return nil
	}
	return errors.New(string(bytes.TrimSpace(b.buf.Bytes())))
}
