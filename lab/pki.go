package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// authority is the cluster's certificate authority. Its files, and those of the
// certificates it signs, lie in dir as NAME.crt and NAME.key.
type authority struct {
	dir  string
	key  crypto.Signer
	cert *x509.Certificate
}

// identity is what a certificate says: a server with addresses, a user with
// groups, or both.
type identity struct {
	name   string // of the files
	user   string // common name
	groups []string
	names  []string
	addrs  []netip.Addr
}

// newAuthority makes a certificate authority in dir.
func newAuthority(dir string) (*authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &authority{dir: dir}
	key, err := a.newKey("ca")
	if err != nil {
		return nil, err
	}
	a.key = key
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "lab"},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a.cert, err = a.sign("ca", template, template, key.Public())
	return a, err
}

// issue makes a key and a certificate for id.
func (a *authority) issue(id identity) error {
	key, err := a.newKey(id.name)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.user, Organization: id.groups},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    id.names,
	}
	for _, addr := range id.addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	if len(id.names)+len(id.addrs) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	_, err = a.sign(id.name, template, a.cert, key.Public())
	return err
}

func (a *authority) newKey(name string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, a.write(name+".key", "EC PRIVATE KEY", der)
}

func (a *authority) sign(name string, template, parent *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	// Clocks are the same here, but tests may turn theirs.
	template.NotBefore = time.Now().Add(-time.Hour)
	template.NotAfter = time.Now().Add(30 * 24 * time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, a.key)
	if err != nil {
		return nil, fmt.Errorf("certificate %q: %w", name, err)
	}
	if err := a.write(name+".crt", "CERTIFICATE", der); err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func (a *authority) write(name, kind string, der []byte) error {
	return os.WriteFile(a.file(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}

func (a *authority) file(name string) string { return filepath.Join(a.dir, name) }

// kubeconfig issues a client certificate and writes a kubeconfig that uses it.
func (a *authority) kubeconfig(file, server string, id identity) error {
	if err := a.issue(id); err != nil {
		return err
	}
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{Server: server, CertificateAuthority: a.file("ca.crt")}
	c.AuthInfos[id.name] = &clientcmdapi.AuthInfo{
		ClientCertificate: a.file(id.name + ".crt"),
		ClientKey:         a.file(id.name + ".key"),
	}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: id.name}
	c.CurrentContext = "lab"
	return clientcmd.WriteToFile(*c, file)
}
