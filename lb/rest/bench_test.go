package rest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/eclusa-lb/eclusa/lb"
)

// instant is an edge that does nothing but keep what it is given.
type instant struct {
	lb.Balancer
	held atomic.Pointer[lb.Config]
}

func (i *instant) Config(context.Context) (lb.Config, lb.Digest, error) {
	c := i.held.Load()
	if c == nil {
		return lb.Config{}, "", nil
	}
	return *c, lb.Digest(strconv.FormatUint(c.Revision, 10)), nil
}

func (i *instant) Set(_ context.Context, w lb.Write) (lb.Receipt, error) {
	i.held.Store(&w.Config)
	return lb.Receipt{Digest: lb.Digest(strconv.FormatUint(w.Config.Revision, 10)), Durable: true}, nil
}

// BenchmarkSetNodeEvent is one node event of a large cluster from the client's
// Set to the edge's, over a real socket.
func BenchmarkSetNodeEvent(b *testing.B) {
	edge := &instant{}
	ca := newAuthority(b, "CA")
	edgeCert, cert := ca.edgeCert(b, "edge-1"), ca.clusterCert(b, "prod")
	addr := serve(b, NewServer(ServerOptions{
		Handler: NewHandler(HandlerOptions{
			Balancer:          func(lb.Cluster) lb.Balancer { return edge },
			RequestsPerSecond: 1e9, Burst: 1e9,
		}),
		TLS: ServerTLS(func() (*tls.Certificate, error) { return edgeCert, nil }, ca.pool()),
	}), true)
	c, err := NewClient(ClientOptions{
		Endpoint: "https://" + addr, ServerName: "edge-1", Cluster: "prod",
		Certificate: func() (*tls.Certificate, error) { return cert, nil },
		RootCAs:     func() (*x509.CertPool, error) { return ca.pool(), nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	next, _ := nodeEvent(bigConfig(5000, 500))
	for b.Loop() {
		if _, err := c.Set(b.Context(), lb.Write{Epoch: "1.1", Config: next}); err != nil {
			b.Fatal(err)
		}
		from := next
		_, next = nodeEvent(from)
		n := next.Nodes["node-123.example.com"]
		n.Draining = next.Revision%2 == 0
		next.Nodes["node-123.example.com"] = n
	}
}
