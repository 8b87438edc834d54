package release

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// A machine is a copy of this one, of which everything that is written goes
// elsewhere. It has a network of its own and a systemctl that notes what it is
// asked.
type machine struct {
	t        *testing.T
	dir      string
	packages string
}

// systemctl stands in for the real one, which needs a running systemd.
const systemctl = `#!/bin/sh
echo "$*" >>/var/log/systemctl
case "$1 $(cat /var/log/edge 2>/dev/null)" in
is-active*runs*) ;;
is-active*) exit 3 ;;
reload*refused) exit 1 ;;
esac
`

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("installing a package needs root")
		}
		t.Skip("installing a package needs root")
	}
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	needRoot(t)
	need(t, "dpkg", "unshare", "chroot", "setpriv", "ip", "systemd-sysusers", "systemd-analyze")
	packages := filepath.Dir(packaged(t)[0])
	m := &machine{t: t, dir: t.TempDir(), packages: packages}
	for _, d := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(m.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(m.dir, "upper", "usr", "local", "bin", "systemctl")
	write(t, program, systemctl)
	if err := os.Chmod(program, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(m.dir, "upper", "run", "systemd", "system", ".there"), "")
	return m
}

// try runs a script on the machine and returns what it prints.
func (m *machine) try(script string) (string, error) {
	m.t.Helper()
	const enter = `set -e
cd "$1"
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount --bind "$2" root/mnt
mount -t proc proc root/proc
mount --rbind /dev root/dev
ip link set lo up
exec chroot root sh -ec "$3"`
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--net", "sh", "-c", enter, "sh", m.dir, m.packages, script)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) run(script string) string {
	m.t.Helper()
	out, err := m.try(script)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return out
}

// asked returns what systemctl was asked since the last time.
func (m *machine) asked() string {
	m.t.Helper()
	return m.run(`cat /var/log/systemctl 2>/dev/null || true; rm -f /var/log/systemctl`)
}

// says fails the test if a text has not all that it should.
func (m *machine) says(what, got string, want ...string) {
	m.t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			m.t.Errorf("%s: got\n%s\nwant %q in it", what, got, w)
		}
	}
}

func (m *machine) file(i int) string { return "/mnt/" + filepath.Base(packaged(m.t)[i]) }

// TestInstall installs, configures, upgrades and removes the edge as an
// administrator does.
func TestInstall(t *testing.T) {
	m := newMachine(t)

	out := m.run("dpkg --force-unsafe-io -i " + m.file(0))
	m.says("installing", out, "installed and not started", "/etc/eclusa/edge.yaml", "systemctl enable --now eclusa-edge")
	if got := m.asked(); got != "daemon-reload\n" {
		t.Errorf("installing asked systemctl for\n%s\nwant daemon-reload alone", got)
	}
	m.says("the user", m.run("getent passwd eclusa-edge"), "/var/lib/eclusa-edge", "nologin")
	m.says("--version", m.run("eclusa-edge --version"), "eclusa-edge v1.2.3 (revision 0123456789ab, go1.")
	m.says("the unit", m.run(`systemd-analyze verify --man=no eclusa-edge.service
		systemd-analyze security --offline=true --threshold=25 --no-pager eclusa-edge.service | tail -1`), "Overall exposure level")

	// As it comes the configuration is refused, and says what is missing.
	out, err := m.try("eclusa-edge --check-config --config /etc/eclusa/edge.yaml")
	m.says("the fresh configuration", out, "name: missing", "api.listen: missing", "clusters: missing")
	if n := strings.Count(out, "\n"); err == nil || n != 3 {
		t.Errorf("the fresh configuration: got %d complaints, %v; want the three things to fill in\n%s", n, err, out)
	}
	m.configure()
	m.says("the filled in configuration", m.run("eclusa-edge --check-config --config /etc/eclusa/edge.yaml"), "nothing to complain about")
	m.serves()

	m.upgrade()
	m.remove()
}

// configure fills in what the fresh configuration lacks.
func (m *machine) configure() {
	m.run(`cd /etc/eclusa
		sed -i -e 's/^name:/name: edge-1/' -e 's/^  listen:/  listen: 127.0.0.2:443/' \
			-e 's/^  mode: none/  mode: interface/' -e 's/^  interface:/  interface: lo/' \
			-e 's/^clusters:/clusters: [{name: prod, addressRanges: [192.0.2.128\/25], nodeRanges: [198.51.100.0\/24]}]/' edge.yaml
		eclusa-edge pki init --dir pki && eclusa-edge pki edge --dir pki --name edge-1 --host 127.0.0.2
		cp pki/ca.crt . && cp pki/edge-1.crt edge.crt && install -o eclusa-edge -m 0400 pki/edge-1.key edge.key`)
}

// asEdge is how the unit starts the edge, as far as this can be had without
// systemd: its user, and its capabilities.
const asEdge = `setpriv --reuid eclusa-edge --regid eclusa-edge --clear-groups --no-new-privs \
	--inh-caps=-all,+net_bind_service,+net_admin,+net_raw --ambient-caps=-all,+net_bind_service,+net_admin,+net_raw \
	--bounding-set=-all,+net_bind_service,+net_admin,+net_raw `

// serves starts the edge with what the unit gives it, and sees it listen on a low
// port.
func (m *machine) serves() {
	m.says("the running edge", m.run(`install -d -o eclusa-edge -g eclusa-edge -m 0700 /var/lib/eclusa-edge
		`+asEdge+`eclusa-edge --config /etc/eclusa/edge.yaml 2>/tmp/log & edge=$!
		for i in $(seq 200); do
			if bash -c 'exec 3<>/dev/tcp/127.0.0.1/9980 && printf "GET /readyz HTTP/1.0\r\n\r\n" >&3 && grep -q "200 OK" <&3' 2>/dev/null; then
				bash -c 'exec 3<>/dev/tcp/127.0.0.2/443' && echo listens on a low port
				kill $edge && wait $edge && echo ended cleanly
				exit
			fi
			sleep 0.05
		done
		cat /tmp/log; exit 1`), "listens on a low port", "ended cleanly")
}

// upgrade installs the next version over a running edge.
func (m *machine) upgrade() {
	t := m.t
	m.run(`echo "# edited" >>/etc/eclusa/edge.yaml; echo runs >/var/log/edge`)
	m.asked()
	m.says("upgrading", m.run("dpkg --force-unsafe-io -i "+m.file(1)), "has taken over")
	if got, want := m.asked(), "daemon-reload\nis-active --quiet eclusa-edge.service\nreload eclusa-edge.service\n"; got != want {
		t.Errorf("upgrading asked systemctl for\n%s\nwant\n%s", got, want)
	}
	m.says("the edited configuration", m.run("tail -1 /etc/eclusa/edge.yaml"), "# edited")

	m.run("echo runs and is refused >/var/log/edge")
	out := m.run("dpkg --force-unsafe-io -i " + m.file(1))
	m.says("upgrading, with the reload refused", out, "goes on as it was")
	if got := m.asked(); strings.Contains(got, "stop") || strings.Contains(got, "restart") {
		t.Errorf("a refused reload: asked systemctl for\n%s\nwant nothing that ends the edge", got)
	}

	m.run("rm /var/log/edge")
	m.run("dpkg --force-unsafe-io -i " + m.file(1))
	if got, want := m.asked(), "daemon-reload\nis-active --quiet eclusa-edge.service\n"; got != want {
		t.Errorf("upgrading a stopped edge asked systemctl for\n%s\nwant\n%s", got, want)
	}
}

// remove takes the package away, with the addresses that the edge has left.
func (m *machine) remove() {
	const vip = "192.0.2.130"
	out := m.run(fmt.Sprintf(`ip address add %[1]s/32 dev lo
		echo '{"lo": ["%[1]s"]}' >/var/lib/eclusa-edge/announced.json && chown eclusa-edge: /var/lib/eclusa-edge/announced.json
		dpkg -r eclusa-edge
		ip address show dev lo
		stat -c 'belongs to %%U' /var/lib/eclusa-edge/announced.json
		ls /etc/eclusa/edge.yaml`, vip))
	m.says("removing", out, "Removed 1 addresses", "belongs to eclusa-edge", "/etc/eclusa/edge.yaml")
	if strings.Contains(out, "inet "+vip) {
		m.t.Errorf("removing: the address of a load balancer is still there:\n%s", out)
	}
	if got, want := m.asked(), "disable --now eclusa-edge.service\ndaemon-reload\n"; got != want {
		m.t.Errorf("removing asked systemctl for\n%s\nwant\n%s", got, want)
	}
	m.says("purging", m.run(`dpkg -P eclusa-edge; ls -d /var/lib/eclusa-edge /etc/eclusa/edge.yaml 2>&1 || true`),
		"'/var/lib/eclusa-edge': No such file", "'/etc/eclusa/edge.yaml': No such file")
}
