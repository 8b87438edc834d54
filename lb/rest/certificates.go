package rest

import (
	"crypto/x509"
	"encoding/pem"
	"time"
)

// Expiries returns when the certificates in a PEM file expire, by the common name
// of their subject, or by the whole subject where that has none. Of several with
// one name the last to expire counts: it replaces the others. What is no
// certificate is passed over, as [x509.CertPool.AppendCertsFromPEM] does.
func Expiries(data []byte) map[string]time.Time {
	out := make(map[string]time.Time)
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			continue
		}
		if name := SubjectOf(cert); cert.NotAfter.After(out[name]) {
			out[name] = cert.NotAfter
		}
	}
}

// SubjectOf returns the common name of a certificate's subject, or the whole
// subject if it has none.
func SubjectOf(cert *x509.Certificate) string {
	if cert.Subject.CommonName != "" {
		return cert.Subject.CommonName
	}
	return cert.Subject.String()
}
