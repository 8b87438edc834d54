package ledger

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Process names a process so that its number cannot be mistaken for that of a
// later one.
type Process struct {
	PID int `json:"pid"`
	// Started is the start time in clock ticks since boot.
	Started uint64 `json:"started"`
}

// Find returns the running process with this number.
func Find(pid int) (Process, error) {
	s, err := read(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Started: s.started}, nil
}

// Running reports whether the process is there and not merely waiting for its
// parent to take note of its end.
func (p Process) Running() bool {
	if p.PID <= 0 {
		return false
	}
	s, err := read(p.PID)
	return err == nil && s.started == p.Started && !s.dead()
}

// stat is what the kernel tells of a process.
type stat struct {
	state   byte
	threads int
	started uint64
}

// dead is true when the last thread has ended: the first may end before the
// others, and the process still counts as a zombie then.
func (s stat) dead() bool {
	return (s.state == 'Z' || s.state == 'X') && s.threads <= 1
}

func read(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// parseStat reads a line of /proc/PID/stat. The second field is the program's
// name in parentheses and may hold anything.
func parseStat(data []byte) (stat, error) {
	_, rest, ok := bytes.Cut(data, []byte("("))
	if !ok {
		return stat{}, fmt.Errorf("process state %q: no name", data)
	}
	end := bytes.LastIndexByte(rest, ')')
	if end < 0 {
		return stat{}, fmt.Errorf("process state %q: no end of name", data)
	}
	f := strings.Fields(string(rest[end+1:]))
	if len(f) < 20 {
		return stat{}, fmt.Errorf("process state %q: too few fields", data)
	}
	threads, err := strconv.Atoi(f[17])
	if err != nil {
		return stat{}, fmt.Errorf("process state %q: threads: %w", data, err)
	}
	started, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process state %q: start: %w", data, err)
	}
	return stat{state: f[0][0], threads: threads, started: started}, nil
}

func bootID() string {
	// Unreadable means the same on each read, which is all that is asked.
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}
