package release

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestARM64 runs the programs of the arm64 images, on another machine through an
// emulator: that they compile says nothing about alignment, system calls and the
// layout of what is passed to the kernel.
func TestARM64(t *testing.T) {
	t.Parallel()
	var emulator []string
	if runtime.GOARCH != "arm64" {
		emulator = []string{"qemu-aarch64-static"}
		need(t, emulator[0])
	}
	run := func(ctx context.Context, program string, args ...string) *exec.Cmd {
		argv := append(append(emulator[:len(emulator):len(emulator)], program), args...)
		return exec.CommandContext(ctx, argv[0], argv[1:]...)
	}
	s := source()
	files, err := Build(t.Context(), s, Platform{"linux", "arm64"}, programs, Edge, Manager)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		out, err := run(t.Context(), file, "--version").CombinedOutput()
		if want := filepath.Base(file) + " v1.2.3 (revision 0123456789ab, go1."; err != nil || !strings.HasPrefix(string(out), want) || !strings.Contains(string(out), "linux/arm64") {
			t.Errorf("%s --version: got %q, %v; want it to begin with %q, and linux/arm64", filepath.Base(file), out, err, want)
		}
	}

	edge, dir := files[0], t.TempDir()
	for _, args := range [][]string{
		{"pki", "init", "--dir", filepath.Join(dir, "pki")},
		{"pki", "edge", "--dir", filepath.Join(dir, "pki"), "--name", "edge-1", "--host", "127.0.0.1"},
		{"--check-config", "--config", edgeConfig(t, dir, freePort(t))},
	} {
		if out, err := run(t.Context(), edge, args...).CombinedOutput(); err != nil {
			t.Fatalf("eclusa-edge %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	management := freePort(t)
	var log bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := run(ctx, edge, "--config", edgeConfig(t, dir, management))
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err = ready(ctx, management)
	cancel()
	_ = cmd.Wait() // it may say that ctx has ended
	if err != nil || cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("the edge: %v, exit code %d\n%s", err, cmd.ProcessState.ExitCode(), log.String())
	}
}

// edgeConfig writes a configuration for an edge on loopback, and returns its file.
func edgeConfig(t *testing.T, dir, management string) string {
	t.Helper()
	file := filepath.Join(dir, "edge.yaml")
	write(t, file, fmt.Sprintf(`name: edge-1
stateDir: %[1]s/state
api: {listen: %[2]s, certFile: %[1]s/pki/edge-1.crt, keyFile: %[1]s/pki/edge-1.key, clientCAFile: %[1]s/pki/ca.crt}
management: {listen: %[3]s}
announce: {mode: none}
clusters: [{name: prod, addressRanges: [192.0.2.128/25], nodeRanges: [198.51.100.0/24]}]
`, dir, freePort(t), management))
	return file
}

// freePort is an address on loopback that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// ready waits until the edge says that it serves.
func ready(ctx context.Context, management string) error {
	for {
		resp, err := http.Get("http://" + management + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("/readyz answers %s", resp.Status)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
