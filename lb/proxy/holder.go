package proxy

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// searchTime bounds the search for processes that hold ports, over all
	// frontends of one Set.
	searchTime = 50 * time.Millisecond
	// maxProcNet bounds what is read of a table of sockets in /proc/net.
	maxProcNet = 16 << 20
	// tcpListen is the state LISTEN in /proc/net/tcp.
	tcpListen = "0A"
)

// holders explains why sockets cannot be opened, and names the process that has
// the port if that is found in little time. What it reads is kept for one Set.
type holders struct {
	deadline time.Time
	sockets  map[lb.Protocol][]boundSocket
}

// boundSocket is a line of /proc/net/tcp and the like.
type boundSocket struct {
	local netip.AddrPort
	inode string
}

// explain returns the error for people.
func (h *holders) explain(id lb.Frontend, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("listen on %s: in use by %s: %w", id, h.find(id), lb.ErrAddressHeld)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("listen on %s: low ports need the capability CAP_NET_BIND_SERVICE or a lower sysctl net.ipv4.ip_unprivileged_port_start: %w", id, err)
	}
	return fmt.Errorf("listen on %s: %w", id, err)
}

// find returns the holder of an address and port in words.
func (h *holders) find(id lb.Frontend) string {
	const unknown = "another process"
	if h.sockets == nil {
		h.deadline = time.Now().Add(searchTime)
		h.sockets = make(map[lb.Protocol][]boundSocket)
	}
	if _, ok := h.sockets[id.Protocol]; !ok {
		h.sockets[id.Protocol] = append(readSockets(string(id.Protocol)), readSockets(string(id.Protocol)+"6")...)
	}
	if time.Now().After(h.deadline) {
		return unknown
	}
	want := netip.AddrPortFrom(id.Addr.Unmap(), id.Port)
	for _, s := range h.sockets[id.Protocol] {
		if s.local.Port() != want.Port() || s.local.Addr() != want.Addr() && !s.local.Addr().IsUnspecified() {
			continue
		}
		if who := h.process(s.inode); who != "" {
			return fmt.Sprintf("%s on %s", who, s.local)
		}
		return fmt.Sprintf("%s on %s", unknown, s.local)
	}
	return unknown
}

// readSockets returns the bound sockets of a table below /proc/net, nothing if it
// cannot be read.
func readSockets(table string) []boundSocket {
	f, err := os.Open(filepath.Join("/proc/net", table))
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseSockets(io.LimitReader(f, maxProcNet), strings.HasPrefix(table, "tcp"))
}

// parseSockets reads the lines of /proc/net/tcp, udp, tcp6 or udp6.
func parseSockets(r io.Reader, listening bool) []boundSocket {
	var all []boundSocket
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || listening && fields[3] != tcpListen {
			continue
		}
		local, ok := parseProcAddr(fields[1])
		if !ok {
			continue
		}
		all = append(all, boundSocket{local, fields[9]})
	}
	return all
}

// parseProcAddr reads "0100007F:0050": words of the address in the byte order of
// the machine, and the port.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	addr, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(addr)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	for i := 0; i < len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok
}

// process returns the process that has the socket, such as `"nginx" (pid 812)`,
// or nothing if it was not found in time or may not be seen.
func (h *holders) process(inode string) string {
	want := "socket:[" + inode + "]"
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return ""
	}
	for _, p := range procs {
		if p.Name()[0] < '1' || p.Name()[0] > '9' {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		fds, err := os.ReadDir(filepath.Join(dir, "fd"))
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if time.Now().After(h.deadline) {
				return ""
			}
			if to, err := os.Readlink(filepath.Join(dir, "fd", fd.Name())); err == nil && to == want {
				comm, _ := os.ReadFile(filepath.Join(dir, "comm"))
				return fmt.Sprintf("%q (pid %s)", strings.TrimSpace(string(comm)), p.Name())
			}
		}
	}
	return ""
}
