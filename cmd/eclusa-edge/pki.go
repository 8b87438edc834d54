package main

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newPKICommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "pki",
		Short: "Make the certificates that edges and clusters know each other by",
		Long: `Make the certificates that edges and clusters know each other by.

  eclusa-edge pki init    --dir pki                                       once
  eclusa-edge pki edge    --dir pki --name edge-1 --host 192.0.2.10       for each edge
  eclusa-edge pki cluster --dir pki --name prod --secret | kubectl apply -f -   for each cluster

Keep ca.key off the edges: whoever has it can speak for any cluster.`,
	}
	c.AddCommand(newPKIInitCommand(), newPKIEdgeCommand(), newPKIClusterCommand())
	return c
}

func newPKIInitCommand() *cobra.Command {
	var dir, name string
	var force bool
	c := &cobra.Command{
		Use:   "init --dir DIR",
		Short: "Make the CA that signs all other certificates",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			pair, err := newAuthority(name, time.Now())
			if err != nil {
				return err
			}
			if err := pair.write(dir, "ca", force); err != nil {
				return err
			}
			tell(c.ErrOrStderr(), "Made the CA %q: ca.crt and ca.key in %s, good for ten years.", name, dir)
			tell(c.ErrOrStderr(), "Keep ca.key secret. Next, for each edge:\n  eclusa-edge pki edge --dir %s --name edge-1 --host ADDRESS", dir)
			return nil
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&name, "name", "eclusa", "the CA's common name")
	c.Flags().BoolVar(&force, "force", false, "replace an existing CA; certificates that it signed become worthless")
	return c
}

func newPKIEdgeCommand() *cobra.Command {
	var dir, name string
	var hosts []string
	var force bool
	var lifetime time.Duration
	c := &cobra.Command{
		Use:   "edge --dir DIR --name NAME --host ADDRESS",
		Short: "Make the certificate of an edge's API",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			template, err := edgeTemplate(name, hosts)
			if err != nil {
				return err
			}
			if _, err := issueInto(dir, name, template, lifetime, force); err != nil {
				return err
			}
			tell(c.ErrOrStderr(), "Made %s.crt and %s.key in %s for the edge %q at %s.", name, name, dir, name, strings.Join(hosts, ", "))
			tell(c.ErrOrStderr(), `Next: copy them and ca.crt to the edge and name them in its configuration:
  api:
    certFile: /etc/eclusa/%s.crt
    keyFile: /etc/eclusa/%s.key
    clientCAFile: /etc/eclusa/ca.crt`, name, name)
			return nil
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&name, "name", "", "the edge's name, as in its configuration and its Edge object (required)")
	c.Flags().StringSliceVar(&hosts, "host", nil, "IP address or DNS name under which clusters reach the edge; may be repeated (at least one)")
	issueFlags(c, &force, &lifetime)
	return c
}

// edgeTemplate is a server's certificate for the hosts and for the edge's own
// name, under which clusters verify it whatever its address is.
func edgeTemplate(name string, hosts []string) (*x509.Certificate, error) {
	if err := nameFlag(name, "edge-1"); err != nil {
		return nil, err
	}
	if len(hosts) == 0 {
		return nil, errors.New("--host is missing: the address under which clusters reach the edge, such as 192.0.2.10")
	}
	t := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{name},
	}
	for _, h := range hosts {
		if a, err := netip.ParseAddr(h); err == nil {
			t.IPAddresses = append(t.IPAddresses, net.IP(a.AsSlice()))
			continue
		}
		if !validHost(h) {
			return nil, fmt.Errorf("--host %q: must be an IP address or a DNS name, without port", h)
		}
		if h != name {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t, nil
}

// validHost tells whether every label of a DNS name is one.
func validHost(h string) bool {
	if len(h) > 253 {
		return false
	}
	for label := range strings.SplitSeq(strings.ToLower(h), ".") {
		if !validName(label) {
			return false
		}
	}
	return true
}

func newPKIClusterCommand() *cobra.Command {
	var dir, name string
	var force bool
	var lifetime time.Duration
	var secret secretFlags
	c := &cobra.Command{
		Use:   "cluster --dir DIR --name NAME",
		Short: "Make the client certificate of a cluster, also as a Secret manifest",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := nameFlag(name, "prod"); err != nil {
				return err
			}
			pair, made, err := clusterPair(dir, name, lifetime, force, secret.print)
			if err != nil {
				return err
			}
			cert, err := parseCertificate(pair.cert)
			if err != nil {
				return err
			}
			log := c.ErrOrStderr()
			if made {
				tell(log, "Made %s.crt and %s.key in %s for the cluster %q, good until %s.", name, name, dir, name, cert.NotAfter.Format(time.DateOnly))
			} else {
				tell(log, "%s.crt exists in %s, good until %s: printing the Secret from it. --force makes a new one.", name, dir, cert.NotAfter.Format(time.DateOnly))
			}
			tell(log, "Allow the cluster in the configuration of each edge (keyPins is optional):\n  clusters:\n  - name: %s\n    keyPins: [%s]", name, pinOf(cert))
			if secret.print {
				return secret.write(c.OutOrStdout(), dir, pair)
			}
			tell(log, "Next, put it into the cluster:\n  eclusa-edge pki cluster --dir %s --name %s --secret | kubectl apply -f -", dir, name)
			return nil
		},
	}
	dirFlag(c, &dir)
	c.Flags().StringVar(&name, "name", "", "the cluster's name, as in the edges' configuration (required)")
	c.Flags().BoolVar(&secret.print, "secret", false, "print a Secret manifest with tls.crt, tls.key and ca.crt to standard output")
	c.Flags().StringVar(&secret.name, "secret-name", "eclusa-client", "the Secret's name")
	c.Flags().StringVar(&secret.namespace, "namespace", "kube-system", "the Secret's namespace")
	issueFlags(c, &force, &lifetime)
	return c
}

// clusterPair makes a cluster's certificate; made tells whether it did. For a
// Secret an existing one serves as well.
func clusterPair(dir, name string, lifetime time.Duration, force, secret bool) (pair keyPair, made bool, err error) {
	if secret && !force {
		certPath, keyPath := pairPaths(dir, name)
		cert, certErr := os.ReadFile(certPath)
		key, keyErr := os.ReadFile(keyPath)
		if certErr == nil && keyErr == nil {
			return keyPair{cert: cert, key: key}, false, nil
		}
	}
	pair, err = issueInto(dir, name, &x509.Certificate{
		Subject:     pkix.Name{CommonName: name},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, lifetime, force)
	return pair, true, err
}

// issueInto signs a certificate with the CA in dir and saves it there.
func issueInto(dir, name string, template *x509.Certificate, lifetime time.Duration, force bool) (keyPair, error) {
	if name == "ca" {
		return keyPair{}, errors.New(`--name "ca": is the name of the CA's own files; choose another`)
	}
	if lifetime < time.Hour {
		return keyPair{}, fmt.Errorf("--valid-for %s: must be at least 1h", lifetime)
	}
	ca, err := readAuthority(dir)
	if err != nil {
		return keyPair{}, err
	}
	pair, err := ca.issue(template, time.Now(), lifetime)
	if err != nil {
		return keyPair{}, err
	}
	return pair, pair.write(dir, name, force)
}

// secretFlags say how a Secret manifest is printed.
type secretFlags struct {
	print           bool
	name, namespace string
}

func (s secretFlags) write(w io.Writer, dir string, pair keyPair) error {
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return fmt.Errorf("read the CA: %w", err)
	}
	encode := base64.StdEncoding.EncodeToString
	_, err = fmt.Fprintf(w, `apiVersion: v1
kind: Secret
metadata:
  name: %s
  namespace: %s
type: kubernetes.io/tls
data:
  ca.crt: %s
  tls.crt: %s
  tls.key: %s
`, cmp.Or(s.name, "eclusa-client"), s.namespace, encode(ca), encode(pair.cert), encode(pair.key))
	return err
}

func dirFlag(c *cobra.Command, dir *string) {
	c.Flags().StringVar(dir, "dir", "pki", "where the files are")
}

func issueFlags(c *cobra.Command, force *bool, lifetime *time.Duration) {
	c.Flags().BoolVar(force, "force", false, "replace existing files")
	c.Flags().DurationVar(lifetime, "valid-for", defaultLifetime, "how long the certificate is good for")
}

func nameFlag(name, example string) error {
	if name == "" {
		return fmt.Errorf("--name is missing: such as %s", example)
	}
	if !validName(name) {
		return fmt.Errorf("--name %q: must be lower-case letters, digits, \"-\" and \".\", begin and end with a letter or digit, and be at most 63 long", name)
	}
	return nil
}

// tell writes a line for people; there is nothing to do about one that is lost.
func tell(w io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(w, format+"\n", args...)
}
