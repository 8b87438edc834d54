package e2e

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A terminal is a shell on some machine, into which examples are typed. With the
// first command that fails it ends.
type terminal struct {
	in   io.WriteCloser
	out  *bufio.Reader
	pipe *os.File
	mark string // a line of it, and an exit code, ends the output of an example
}

// openTerminal starts the shell, which must read its commands from standard
// input. It ends with the test, and with it what was left in the background.
func openTerminal(t *testing.T, shell *exec.Cmd) *terminal {
	t.Helper()
	in, err := shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	shell.Stdout, shell.Stderr = w, w
	// What an example starts to stay, as make up does, has a session of its own.
	shell.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := errors.Join(shell.Start(), w.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = syscall.Kill(-shell.Process.Pid, syscall.SIGKILL)
		_ = shell.Wait()
		r.Close()
	})
	s := &terminal{in: in, out: bufio.NewReader(r), pipe: r, mark: "-- " + rand.Text()}
	s.send(t, fmt.Sprintf("trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR\ntrap 'printf \"\\n%s %%d\\n\" $?' EXIT", s.mark))
	return s
}

func (s *terminal) send(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(s.in, line); err != nil {
		t.Fatal(err)
	}
}

// enter types an example and looks at what comes of it.
func (s *terminal) enter(t *testing.T, e example) {
	t.Helper()
	begun := time.Now()
	encoded := base64.StdEncoding.EncodeToString([]byte(e.code))
	switch {
	case e.file != "":
		s.send(t, fmt.Sprintf("mkdir -p %s; echo %s | base64 -d >%s", path.Dir(e.file), encoded, e.file))
	case e.exit != 0:
		s.send(t, "trap - ERR; set +e")
		fallthrough
	default:
		s.send(t, fmt.Sprintf(`eval "$(echo %s | base64 -d)" </dev/null`, encoded))
	}
	// The files of a lab that is down are forgotten, too.
	s.send(t, fmt.Sprintf(`printf '\n%s %%d\n' $?; set -e; hash -r`, s.mark))
	got, exit, err := s.read(2 * time.Minute)
	switch {
	case err != nil:
		t.Fatalf("%s: %v after\n%s", e, err, got)
	case exit != e.exit:
		t.Fatalf("%s: the example ends with %d, want %d:\n%s\nIt prints\n%s", e, exit, e.exit, e.code, got)
	case e.output != nil && !matches(*e.output, got):
		t.Errorf("%s: the example prints\n%s\nThe page shows\n%s", e, got, *e.output)
	}
	t.Logf("%s in %.1f s", e, time.Since(begun).Seconds())
	if testing.Verbose() && os.Getenv("E2E_EXAMPLES") != "" {
		t.Log("\n" + e.code + "\n" + got)
	}
}

// read returns what is printed up to the mark.
func (s *terminal) read(limit time.Duration) (output string, exit int, err error) {
	if err := s.pipe.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return "", 0, err
	}
	for {
		line, err := s.out.ReadString('\n')
		if code, ok := strings.CutPrefix(strings.TrimSpace(line), s.mark+" "); ok {
			exit, err = strconv.Atoi(code)
			return output, exit, err
		}
		output += line
		if err != nil {
			return output, 0, err
		}
	}
}

// bash is the shell as examples are typed into it.
var bash = []string{"bash", "-euo", "pipefail"}

// inCopy makes a shell work in a copy of the checkout, at the same place, so that
// the compiler knows what it has compiled before, without what was built there. What
// is written goes to dir, and what is built to bin.
func inCopy(dir, bin string, argv ...string) []string {
	const enter = `set -e
mkdir -p "$2/upper/bin" "$2/work" "$3"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$1"
cd "$1"
mount --bind "$3" bin
shift 3
exec "$@"`
	root, err := os.Getwd()
	if err != nil {
		panic(err) // nobody removes the folder of a test that runs
	}
	return append([]string{"bash", "-c", enter, "bash", path.Dir(root), dir, bin}, argv...)
}

// onMachine makes a shell run on a machine of its own, as far as files and
// processes go: a copy of this one, with the network of where it is started. What
// is written goes to dir, the user's home is dir/home, and the programs in
// testdata/machine stand in for systemd, which needs to be the first process.
func onMachine(dir string, argv ...string) []string {
	const enter = `set -e
programs=$1; cd "$2"; shift 2
mkdir -p upper work root home
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --bind home root/root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/tmp
echo force-unsafe-io >root/etc/dpkg/dpkg.cfg.d/fast
install -D -t root/usr/local/bin "$programs"/*ctl
exec chroot root bash -c 'cd /root; exec "$@"' bash "$@"`
	programs, err := os.Getwd()
	if err != nil {
		panic(err) // as above
	}
	unshare := []string{"unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "bash", "-c", enter, "bash", path.Join(programs, "testdata", "machine"), dir}
	return append(unshare, argv...)
}

// commandOf is exec.CommandContext with the arguments in one.
func commandOf(ctx context.Context, argv []string) *exec.Cmd {
	return exec.CommandContext(ctx, argv[0], argv[1:]...)
}
