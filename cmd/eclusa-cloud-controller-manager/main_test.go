package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary stand in for the program, so that what is tested
// is a process with its exit code.
func TestMain(m *testing.M) {
	if os.Getenv("ECLUSA_TEST_PROGRAM") == "1" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runProgram runs the program and returns its output and exit code.
func runProgram(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), "ECLUSA_TEST_PROGRAM=1", "KUBERNETES_SERVICE_HOST=", "KUBERNETES_SERVICE_PORT=", "HOME="+t.TempDir(), "KUBECONFIG=")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestProgramExplainsItself(t *testing.T) {
	out, _, code := runProgram(t, "--help")
	for _, want := range []string{
		"--cloud-config", "--cluster-name", "--log-format", "--log-level", "--check-config", "--version", "-v, --v",
		"eclusa-class-controller, service-lb-controller",
		`--cloud-provider string`, `(default "eclusa")`,
		`--leader-elect-resource-name string`, `(default "eclusa-cloud-controller-manager")`,
		"--concurrent-service-syncs int32", "(default 10)",
		"--kube-api-qps float32", "(default 100)", "(default 200)",
		"It exits with 1 if",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("--help does not have %q", want)
		}
	}
	for _, not := range []string{"webhook", "cloud-node", "--logging-format"} {
		if strings.Contains(out, not+",") {
			t.Errorf("--help has %q, which there is not", not)
		}
	}
	if code != 0 {
		t.Errorf("--help exits with %d, want 0", code)
	}
	out, _, code = runProgram(t, "--version")
	if !strings.HasPrefix(out, "eclusa-cloud-controller-manager unknown (revision unknown, go1.") || code != 0 {
		t.Errorf("--version prints %q and exits with %d, want the name and version, and 0", out, code)
	}
}

func TestProgramRefuses(t *testing.T) {
	dir := t.TempDir()
	pair := writePair(t, dir, "prod", time.Now().Add(time.Hour))
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	client := "client:\n  certFile: " + pair.CertFile + "\n  keyFile: " + pair.KeyFile + "\n  caFile: " + pair.CAFile + "\n"
	good := write("good.yaml", client)
	bad := write("bad.yaml", client+"clustername: x\nnodeAddressTypes: [Hostname]\n")
	other := write("other.yaml", "clusterName: test\n"+client)
	for _, test := range []struct {
		name string
		args []string
		code int
		want []string
	}{
		{"no flags", nil, exitUsage, []string{"--cloud-config is missing"}},
		{"unknown flag", []string{"--clud-config=x"}, exitUsage, []string{"unknown flag: --clud-config", "--help shows all"}},
		{"argument", []string{"x"}, exitFailed, []string{`unknown command "x"`}},
		{"no file", []string{"--cloud-config=" + dir + "/none.yaml"}, exitUsage, []string{"none.yaml: no such file"}},
		{"wrong file", []string{"--cloud-config=" + bad}, exitUsage, []string{
			bad + `:5: clustername: unknown key; did you mean "clusterName"?`,
			bad + `:6: nodeAddressTypes[0]: "Hostname": must be InternalIP or ExternalIP`,
		}},
		{"wrong name in the file", []string{"--cloud-config=" + other}, exitUsage, []string{`clusterName is "test"`, `is that of cluster "prod"`}},
		{"wrong name in the flag", []string{"--cloud-config=" + good, "--cluster-name=test"}, exitUsage, []string{`--cluster-name is "test"`, `is that of cluster "prod"`}},
		{"another provider", []string{"--cloud-config=" + good, "--cloud-provider=external"}, exitUsage, []string{`--cloud-provider: "external": must be "eclusa"`}},
		{"no election", []string{"--cloud-config=" + good, "--leader-elect=false"}, exitUsage, []string{"--leader-elect=false: edges let only those write"}},
		{"migration", []string{"--cloud-config=" + good, "--enable-leader-migration"}, exitUsage, []string{"--enable-leader-migration: there is nothing"}},
		{"log format", []string{"--cloud-config=" + good, "--log-format=xml"}, exitUsage, []string{`--log-format: "xml": must be json or console`}},
		{"log level", []string{"--cloud-config=" + good, "--log-level=loud"}, exitUsage, []string{`--log-level: "loud": must be debug, info, warn or error`}},
		{"controller", []string{"--cloud-config=" + good, "--controllers=route"}, exitUsage, []string{`"route" is not in the list of known controllers`}},
		{"no kubeconfig", []string{"--cloud-config=" + good, "--kubeconfig=" + dir + "/none"}, exitFailed, []string{"none: no such file"}},
		{"nothing wrong", []string{"--cloud-config=" + good, "--check-config"}, 0, nil},
		{"nothing wrong, name given", []string{"--cloud_config=" + good, "--cluster-name=prod", "--check-config"}, 0, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, stderr, code := runProgram(t, test.args...)
			if code != test.code {
				t.Errorf("exits with %d, want %d; it says:\n%s", code, test.code, stderr)
			}
			for _, want := range test.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("says:\n%s\nwant %q in it", stderr, want)
				}
			}
		})
	}
}
