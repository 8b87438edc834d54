package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// pkiRun runs a command and returns what it printed.
func pkiRun(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, log bytes.Buffer
	c := newCommand()
	c.SetArgs(append([]string{"pki"}, args...))
	c.SetOut(&out)
	c.SetErr(&log)
	err = c.Execute()
	return out.String(), log.String(), err
}

func readCert(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := parseCertificate(data)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestPKI(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	for _, args := range [][]string{
		{"init", "--dir", dir, "--name", "our CA"},
		{"edge", "--dir", dir, "--name", "edge-1", "--host", "192.0.2.10", "--host", "2001:db8::10,edge.example.org"},
		{"cluster", "--dir", dir, "--name", "prod"},
	} {
		_, log, err := pkiRun(t, args...)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log, "Next") {
			t.Errorf("pki %s: %q does not say what to do next", args[0], log)
		}
	}
	ca := readCert(t, filepath.Join(dir, "ca.crt"))
	if !ca.IsCA || ca.Subject.CommonName != "our CA" || !ca.MaxPathLenZero {
		t.Errorf("CA: got %+v", ca.Subject)
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	edge := readCert(t, filepath.Join(dir, "edge-1.crt"))
	for _, host := range []string{"edge-1", "192.0.2.10", "2001:db8::10", "edge.example.org"} {
		if _, err := edge.Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("edge's certificate at %s: %v", host, err)
		}
	}
	cluster := readCert(t, filepath.Join(dir, "prod.crt"))
	client := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if _, err := cluster.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: client}); err != nil || cluster.Subject.CommonName != "prod" {
		t.Errorf("cluster's certificate: %q, %v", cluster.Subject.CommonName, err)
	}
	if _, err := edge.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: client}); err == nil {
		t.Error("an edge's certificate speaks for a cluster")
	}
	if _, err := cluster.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a cluster's certificate passes for an edge")
	}
	for _, name := range []string{"ca", "edge-1", "prod"} {
		info, err := os.Stat(filepath.Join(dir, name+".key"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s.key: got mode %v, %v; want 0600", name, info.Mode(), err)
		}
		if c := readCert(t, filepath.Join(dir, name+".crt")); c.NotAfter.Before(time.Now().Add(300*24*time.Hour)) || c.PublicKeyAlgorithm != x509.ECDSA {
			t.Errorf("%s.crt: got %s until %s; want ECDSA for a year at least", name, c.PublicKeyAlgorithm, c.NotAfter)
		}
	}
}

func TestPKISecret(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := pkiRun(t, "init", "--dir", dir); err != nil {
		t.Fatal(err)
	}
	manifest, log, err := pkiRun(t, "cluster", "--dir", dir, "--name", "prod", "--secret", "--namespace", "eclusa")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		APIVersion, Kind, Type string
		Metadata               struct{ Name, Namespace string }
		Data                   map[string]string
	}
	d := yaml.NewDecoder(strings.NewReader(strings.NewReplacer("apiVersion", "apiversion").Replace(manifest)))
	d.KnownFields(true)
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	if s.Kind != "Secret" || s.Metadata.Namespace != "eclusa" || s.Metadata.Name == "" || len(s.Data) != 3 {
		t.Errorf("manifest: got %+v", s)
	}
	parts := make(map[string][]byte)
	for k, v := range s.Data {
		if parts[k], err = base64.StdEncoding.DecodeString(v); err != nil {
			t.Errorf("%s: %v", k, err)
		}
	}
	pair, err := tls.X509KeyPair(parts["tls.crt"], parts["tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(log, pinOf(pair.Leaf).String()) {
		t.Errorf("%q does not tell the pin %s", log, pinOf(pair.Leaf))
	}
	if strings.Contains(log, "PRIVATE") {
		t.Error("the key is in what is told to people")
	}
	// Again: the same certificate, since nobody has asked for another.
	again, _, err := pkiRun(t, "cluster", "--dir", dir, "--name", "prod", "--secret", "--namespace", "eclusa")
	if err != nil || again != manifest {
		t.Errorf("again: got another manifest, %v", err)
	}
}

func TestPKIRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := pkiRun(t, "edge", "--dir", dir, "--name", "e", "--host", "192.0.2.1"); err == nil || !strings.Contains(err.Error(), "eclusa-edge pki init") {
		t.Errorf("without a CA: got %v; want what to do", err)
	}
	for _, args := range [][]string{{"init"}, {"edge", "--name", "e", "--host", "192.0.2.1"}, {"cluster", "--name", "c"}} {
		if _, _, err := pkiRun(t, append(args, "--dir", dir)...); err != nil {
			t.Fatal(err)
		}
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"init"}, "--force replaces it"},
		{[]string{"edge", "--name", "e", "--host", "192.0.2.1"}, "--force replaces it"},
		{[]string{"cluster", "--name", "c"}, "--force replaces it"},
		{[]string{"cluster"}, "--name is missing"},
		{[]string{"cluster", "--name", "../x"}, `"../x"`},
		{[]string{"cluster", "--name", "ca"}, "choose another"},
		{[]string{"edge", "--name", "f"}, "--host is missing"},
		{[]string{"edge", "--name", "f", "--host", "192.0.2.1:7443"}, "without port"},
		{[]string{"edge", "--name", "f", "--host", "192.0.2.1", "--valid-for", "1s"}, "at least 1h"},
		{[]string{"cluster", "--name", "d", "surplus"}, "surplus"},
	} {
		if _, _, err := pkiRun(t, append(c.args, "--dir", dir)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("pki %v: got %v; want an error with %q", c.args, err, c.want)
		}
	}
	after, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the CA's key was replaced (%v)", err)
	}
	// The CA's key must fit its certificate.
	other := t.TempDir()
	if _, _, err := pkiRun(t, "init", "--dir", other); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(other, "ca.key"), filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := pkiRun(t, "cluster", "--dir", dir, "--name", "d"); err == nil || !strings.Contains(err.Error(), "not the key") {
		t.Errorf("another CA's key: got %v; want an error", err)
	}
	if _, err := parseKey([]byte("x")); err == nil {
		t.Error("a key that is none: got nil")
	}
}

func TestKeysAreOnP256(t *testing.T) {
	pair, err := newAuthority("x", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(pair.key)
	if err != nil {
		t.Fatal(err)
	}
	if got := key.Curve.Params().Name; got != "P-256" {
		t.Errorf("curve: got %s; want P-256", got)
	}
}
