package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

// writePair writes a certificate of a cluster, which is its own CA, and returns
// the files.
func writePair(t *testing.T, dir, cluster string, until time.Time) ClientConfig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cluster},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := ClientConfig{filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	for name, data := range map[string][]byte{files.CertFile: certPEM, files.CAFile: certPEM, files.KeyFile: keyPEM} {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// age makes files look older, so that what is written next is seen to be new
// however coarse the file system's clock.
func age(t *testing.T, files ClientConfig) {
	t.Helper()
	for _, f := range []string{files.CertFile, files.KeyFile, files.CAFile} {
		if err := os.Chtimes(f, time.Time{}, time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCredentialsAreReadAgain(t *testing.T) {
	dir, tomorrow := t.TempDir(), time.Now().Add(24*time.Hour)
	files := writePair(t, dir, "prod", tomorrow)
	age(t, files)
	c, err := newCredentials(files, map[string]string{"clusterName": "prod"}, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		pair, err := c.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.String()
	}
	roots := func() any {
		pool, err := c.RootCAs()
		if err != nil {
			t.Fatal(err)
		}
		return pool
	}
	first, firstRoots := serial(), roots()
	if serial() != first || roots() != firstRoots {
		t.Error("unchanged files were read again")
	}
	writePair(t, dir, "prod", tomorrow)
	second, secondRoots := serial(), roots()
	if second == first || secondRoots == firstRoots {
		t.Error("changed files were not read again")
	}
	for _, test := range []struct {
		name   string
		change func()
	}{
		{"another cluster's", func() { writePair(t, dir, "test", tomorrow) }},
		{"expired", func() { writePair(t, dir, "prod", time.Now().Add(-time.Second)) }},
		{"gone", func() { os.Remove(files.CertFile); os.Remove(files.KeyFile) }},
		{"half written", func() {
			if err := os.WriteFile(files.CertFile, []byte("-----BEGIN"), 0o600); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		age(t, writePair(t, dir, "prod", tomorrow))
		good := serial()
		test.change()
		if got := serial(); got != good {
			t.Errorf("certificate that is %s: took %s, want the one before, %s", test.name, got, good)
		}
	}
	good := roots()
	if err := os.WriteFile(files.CAFile, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if roots() != good {
		t.Error("CA file without a certificate: want the one before")
	}
}

func TestNewCredentialsComplains(t *testing.T) {
	tomorrow := time.Now().Add(24 * time.Hour)
	for _, test := range []struct {
		name    string
		change  func(t *testing.T, f *ClientConfig)
		claimed map[string]string
		want    string
	}{
		{"other name in the file", nil, map[string]string{"clusterName": "test"}, `clusterName is "test", and the certificate in client.certFile`},
		{"other name in the flag", nil, map[string]string{"--cluster-name": "test", "clusterName": "prod"}, `--cluster-name is "test", and the certificate`},
		{"no name", func(t *testing.T, f *ClientConfig) { writePair(t, filepath.Dir(f.CertFile), "", tomorrow) }, nil, "has no common name"},
		{"no file", func(_ *testing.T, f *ClientConfig) { f.CertFile += "x" }, nil, `tls.crtx" with client.keyFile`},
		{"no CA file", func(_ *testing.T, f *ClientConfig) { f.CAFile += "x" }, nil, `client.caFile "`},
		{"key for CA", func(_ *testing.T, f *ClientConfig) { f.CAFile = f.KeyFile }, nil, "has no certificate in PEM"},
		{"other key", func(t *testing.T, f *ClientConfig) {
			f.KeyFile = writePair(t, t.TempDir(), "prod", tomorrow).KeyFile
		}, nil, "private key does not match"},
		{"expired", func(t *testing.T, f *ClientConfig) {
			writePair(t, filepath.Dir(f.CertFile), "prod", time.Now().Add(-time.Minute))
		}, nil, "has expired at"},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := writePair(t, t.TempDir(), "prod", tomorrow)
			if test.change != nil {
				test.change(t, &f)
			}
			_, err := newCredentials(f, test.claimed, zap.NewNop())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
}
