package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// planted are secrets that lie about in the cluster of the test.
type planted struct{ pem, base64PEM, jwt, bootstrap, password string }

func plant(t *testing.T) planted {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return planted{
		pem: text, base64PEM: base64.StdEncoding.EncodeToString([]byte(text)),
		jwt:       part(`{"alg":"RS256","kid":"k"}`) + "." + part(`{"sub":"system:serviceaccount:x:y"}`) + "." + part("signature-signature"),
		bootstrap: "abc123.0123456789abcdef", password: "hunter2-is-no-password",
	}
}

// traces are texts that must not be found anywhere: all of a secret, or enough of
// it.
func (p planted) traces() map[string]string {
	body := strings.Split(p.pem, "\n")[1]
	return map[string]string{
		"a line of a private key": body, "a private key in base64": p.base64PEM[40:90], "a token": strings.Split(p.jwt, ".")[1],
		"a token's signature": strings.Split(p.jwt, ".")[2], "a bootstrap token": p.bootstrap, "a password": p.password, "our own token": testToken,
	}
}

// objects puts the secrets everywhere where people put them.
func (p planted) objects(t *testing.T, api *apiServer) {
	t.Helper()
	add := func(path, object string) {
		u := &unstructured.Unstructured{}
		object = strings.NewReplacer("$PEM", strings.ReplaceAll(p.pem, "\n", `\n`), "$B64", p.base64PEM, "$JWT", p.jwt, "$BOOT", p.bootstrap, "$PW", p.password).Replace(object)
		if err := json.Unmarshal([]byte(object), &u.Object); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		api.objects[path] = u
	}
	add("/api/v1/namespaces/kube-system/secrets/client", `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"client","namespace":"kube-system","labels":{"app.kubernetes.io/name":"eclusa"}},"data":{"tls.key":"$B64"},"stringData":{"token":"$JWT"}}`)
	add("/api/v1/namespaces/kube-system/pods/eclusa-7d9f", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"eclusa-7d9f","namespace":"kube-system","labels":{"app.kubernetes.io/name":"eclusa"},
		"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{\"password\":\"$PW\"}","note":"$PEM"}},
		"spec":{"containers":[{"name":"manager","args":["--token=$BOOT","--password","$PW","--cloud-config=/etc/eclusa/cloud.yaml"],"env":[{"name":"HARMLESS","value":"$PW"},{"name":"T","value":"$JWT"}]}],"ephemeralContainers":[{"name":"debugger","env":[{"name":"HARMLESS","value":"$PW"}],"args":["--token=$BOOT"]}]},
		"status":{"phase":"Running","containerStatuses":[{"name":"manager","restartCount":1}]}}`)
	// Whose label is the manager's, and who is not.
	add("/api/v1/namespaces/default/pods/eclusa-not", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"eclusa-not","namespace":"default","labels":{"app.kubernetes.io/name":"eclusa"}},
		"spec":{"containers":[{"name":"manager"}]},"status":{"phase":"Running"}}`)
	add("/apis/apps/v1/namespaces/kube-system/deployments/eclusa", `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"eclusa","namespace":"kube-system","labels":{"app.kubernetes.io/name":"eclusa"}},
		"spec":{"template":{"metadata":{"annotations":{"x":"$PW"}},"spec":{"containers":[{"name":"manager","env":[{"name":"PW","value":"$PW"}]}]}}}}`)
	add("/api/v1/namespaces/kube-system/configmaps/eclusa", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"eclusa","namespace":"kube-system","labels":{"app.kubernetes.io/name":"eclusa"}},
		"data":{"cloud.yaml":"client:\n  keyFile: /etc/eclusa/tls.key\n  password: $PW\n","oops.pem":"$PEM","kubeconfig":"client-key-data: $B64\n"}}`)
	add("/api/v1/namespaces/default/events/e1", `{"apiVersion":"v1","kind":"Event","metadata":{"name":"e1","namespace":"default"},"involvedObject":{"kind":"Service","name":"web","namespace":"default"},"message":"GET https://user:$PW@host/ Bearer $JWT","reason":"Oops"}`)
	svc := api.objects["/api/v1/namespaces/default/services/web"]
	svc.SetAnnotations(map[string]string{"eclusa.io/assigned-addresses": "192.0.2.1", "other.example/api-key": p.password, "eclusa.io/sharing-key": p.jwt})
	api.logs["eclusa-7d9f"] = `{"level":"info","msg":"got token","token":"` + p.jwt + `"}` + "\n" +
		"Authorization: Bearer " + p.jwt + "\npassword=" + p.password + "\njoin " + p.bootstrap + "\n" + p.pem + "harmless line\n"
}

// TestSupportBundleHasNoSecrets plants secrets in Secrets and where they do not
// belong, and looks for them in every file of the bundle.
func TestSupportBundleHasNoSecrets(t *testing.T) {
	api := &apiServer{token: testToken, objects: map[string]*unstructured.Unstructured{}, logs: map[string]string{}}
	base, err := os.ReadFile("testdata/base.yaml")
	if err == nil {
		err = api.load(base)
	}
	if err != nil {
		t.Fatal(err)
	}
	secrets := plant(t)
	secrets.objects(t, api)
	server := httptest.NewTLSServer(api)
	defer server.Close()
	dir := t.TempDir()
	config := filepath.Join(dir, "kubeconfig")
	if err := writeKubeconfig(config, server); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "b.tar.gz")
	run := func() (string, string, error) {
		p := newProgram()
		p.now = func() time.Time { return testNow }
		cmd := newCommand(p)
		var out, errs bytes.Buffer
		cmd.SetOut(&out)
		cmd.SetErr(&errs)
		cmd.SetArgs([]string{"support-bundle", "--kubeconfig", config, "--file", file})
		err := cmd.ExecuteContext(t.Context())
		return out.String(), errs.String(), err
	}
	out, errs, err := run()
	if err != nil {
		t.Fatalf("%v: %s", err, errs)
	}
	if !strings.Contains(out, "look at it before you give it away") {
		t.Errorf("it says %q", out)
	}
	files := unpack(t, file)
	for name, content := range files {
		for what, trace := range secrets.traces() {
			if strings.Contains(content, trace) {
				t.Errorf("%s has %s", name, what)
			}
		}
	}
	rules := roles(t)
	for _, r := range api.requests {
		checkAllowed(t, rules, r)
		if strings.Contains(r, "/secrets") {
			t.Errorf("it asked for Secrets: %s", r)
		}
		if strings.Contains(r, "eclusa-not") {
			t.Errorf("it asked for a pod that is none of the manager's: %s", r)
		}
	}
	for name, want := range map[string]string{
		"README.txt": "Secrets were not read", "status.yaml": "edge-1", "services.yaml": "192.0.2.1", "edges.yaml": "https://edge-2:7443", "addresspools.yaml": "192.0.2.1-192.0.2.4",
		"nodes.yaml": "10.0.0.1", "endpointslices.yaml": "10.9.0.3", "events.yaml": "Oops", "lease.yaml": "eclusa-7d9f_0b5e",
		"manager/pods.yaml": "--cloud-config=/etc/eclusa/cloud.yaml", "manager/configmaps.yaml": "keyFile: /etc/eclusa/tls.key", "manager/deployments.yaml": redacted,
		"manager/logs/kube-system/eclusa-7d9f/manager.log": "harmless line", "manager/logs/kube-system/eclusa-7d9f/manager.previous.log": "harmless line", "version.txt": "v1.37.2",
	} {
		if !strings.Contains(files["b/"+name], want) {
			t.Errorf("%s does not have %q; it is:\n%s", name, want, files["b/"+name])
		}
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v (%v), want 0600", info.Mode(), err)
	}
	if _, _, err := run(); exitCode(err) != exitUsage {
		t.Errorf("writing over a bundle returned %v, want a usage error", err)
	}
}

// unpack returns the files of an archive.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	gz, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	archive := tar.NewReader(gz)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}
