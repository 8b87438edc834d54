package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// KeyPin is the SHA-256 fingerprint of a public key (its DER form, as in the
// certificate). As text it is hex, with or without colons, or base64.
type KeyPin [sha256.Size]byte

var errKeyPin = errors.New("must be the SHA-256 of a public key: 64 hex digits or 44 characters of base64")

// UnmarshalText reads hex or base64.
func (p *KeyPin) UnmarshalText(text []byte) error {
	s := strings.TrimPrefix(string(text), "sha256:")
	raw, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil {
		raw, err = base64.StdEncoding.DecodeString(s)
	}
	if err != nil || len(raw) != sha256.Size {
		return errKeyPin
	}
	copy(p[:], raw)
	return nil
}

// String returns the pin in hex.
func (p KeyPin) String() string { return hex.EncodeToString(p[:]) }

// pinOf returns the pin of a certificate's key.
func pinOf(c *x509.Certificate) KeyPin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }
