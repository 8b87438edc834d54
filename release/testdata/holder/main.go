// Command holder is a cluster with one load balancer, its only node, and a client
// that always has one connection open through an edge. It counts in /holder which
// connection that is.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/rest"
)

const (
	node     = "198.51.100.1"
	nodePort = 30070
	address  = "192.0.2.130"
)

func main() {
	go serve()
	if err := write(os.Args[1]); err != nil {
		log.Fatal(err)
	}
	for n := 1; ; {
		c, err := net.DialTimeout("tcp", address+":7000", time.Second)
		if err != nil || !answers(c) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err := os.WriteFile("/holder", fmt.Appendln(nil, n), 0o600); err != nil {
			log.Fatal(err)
		}
		for answers(c) {
			time.Sleep(50 * time.Millisecond)
		}
		n++
	}
}

// serve is the node: it echoes.
func serve() {
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", node, nodePort))
	if err != nil {
		log.Fatal(err)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
	}
}

func answers(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, err := c.Write([]byte("x"))
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	if err != nil {
		_ = c.Close()
	}
	return err == nil
}

// write is the cluster.
func write(pki string) error {
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "prod.crt"), filepath.Join(pki, "prod.key"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c, err := rest.NewClient(rest.ClientOptions{
		Endpoint: "https://127.0.0.2:443", ServerName: "127.0.0.2", Cluster: "prod", Timeout: 5 * time.Second,
		Certificate: func() (*tls.Certificate, error) { return &cert, nil },
		RootCAs:     func() (*x509.CertPool, error) { return roots, nil },
	})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := context.Background()
	epoch, err := c.Claim(ctx, lb.Claim{ClusterUID: "cluster", LeaseUID: "lease", LeaseTransitions: 1, Holder: "ccm-0"})
	if err != nil {
		return err
	}
	l := lb.LoadBalancer{
		Name: "default/web", ClaimTime: time.Unix(1, 0), Addresses: []netip.Addr{netip.MustParseAddr(address)}, Pool: "all", FailOpen: true,
		Listeners: []lb.Listener{{Protocol: lb.TCP, Port: 7000, TargetPort: nodePort}},
	}
	l.HealthCheck.Protocol, l.HealthCheck.Port = "tcp", nodePort
	_, err = c.Set(ctx, lb.Write{Epoch: epoch, Config: lb.Config{
		Revision:      1,
		Nodes:         map[lb.NodeName]lb.Node{"n1": {Addresses: []netip.Addr{netip.MustParseAddr(node)}}},
		Pools:         map[lb.PoolName]lb.Pool{"all": {"n1": {}}},
		LoadBalancers: map[lb.UID]lb.LoadBalancer{"u1": l},
	}})
	return err
}
