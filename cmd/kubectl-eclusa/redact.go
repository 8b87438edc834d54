package main

import (
	"regexp"
	"strings"
)

// redacted stands for what was taken out.
const redacted = "[REDACTED]"

// secrets match what must never leave a cluster, wherever it turns up: the last
// fence, since nothing that is meant to hold a secret is read at all.
var secrets = []struct {
	what *regexp.Regexp
	with string
}{
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), redacted},
	// JSON Web Tokens, such as those of ServiceAccounts.
	{regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]*`), redacted},
	{regexp.MustCompile(`(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}`), "$1$2" + redacted},
	// Bootstrap tokens.
	{regexp.MustCompile(`\b[a-z0-9]{6}\.[a-z0-9]{16}\b`), redacted},
	// Credentials in URLs.
	{regexp.MustCompile(`(://)[^/\s:@"']+:[^/\s@"']+@`), "$1" + redacted + "@"},
	// name=value, name: value and "name": "value" of things called secret.
	{regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[-_]?key|private[-_]?key|client[-_]?key[-_]?data|credential)s?\\?["']?\s*[:=]\s*\\?["']?)([^\s"',;}\\]{4,})`), "$1" + redacted},
	// Private keys in base64, as Secrets and kubeconfigs have them: the encoding
	// of "-----BEGIN", at any of its three offsets is not looked for, since PEM
	// begins its own value.
	{regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=\s]{20,}`), redacted},
}

// redact takes out of a text whatever looks like a secret.
func redact(text string) string {
	for _, s := range secrets {
		text = s.what.ReplaceAllString(text, s.with)
	}
	return text
}

// harmlessName says whether the value of an environment variable or argument of
// this name may be shown.
func harmlessName(name string) bool {
	name = strings.ToLower(name)
	for _, part := range []string{"password", "passwd", "secret", "token", "key", "credential", "auth"} {
		if strings.Contains(name, part) {
			return false
		}
	}
	return true
}
