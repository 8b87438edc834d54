package release

import (
	"bytes"
	"encoding/pem"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// certificates is where Go looks for the certificates of the authorities.
const certificates = "etc/ssl/certs/ca-certificates.crt"

// baseFiles are what every image has beside its program.
func baseFiles() []file {
	return []file{
		{name: "etc/", mode: 0o755},
		{name: "etc/group", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:\nnonroot:x:%d:\n", User)},
		{name: "etc/passwd", mode: 0o644, data: fmt.Appendf(nil, "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%d:%d:nonroot:/:/sbin/nologin\n", User, User)},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: certificates, mode: 0o644, data: authorities()},
		// Written to by nobody, since the root file system is to be read-only; but
		// there to mount something on.
		{name: "tmp/", mode: 0o1777},
	}
}

// authorities are the public certificate authorities that Mozilla trusts, as the
// pinned Go module has them, so that no image depends on the machine that has
// built it. Those that are trusted with reservations, which a file cannot
// express, are left out.
func authorities() []byte {
	var b bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint == nil {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}))
		}
	}
	return b.Bytes()
}
