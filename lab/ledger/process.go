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
	_, started, err := stat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Started: started}, nil
}

// Running reports whether the process is there and not merely waiting for its
// parent to take note of its end.
func (p Process) Running() bool {
	if p.PID <= 0 {
		return false
	}
	state, started, err := stat(p.PID)
	return err == nil && started == p.Started && state != 'Z' && state != 'X'
}

func stat(pid int) (state byte, started uint64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	return parseStat(data)
}

// parseStat reads the state and start time from a line of /proc/PID/stat. The
// second field is the program's name in parentheses and may hold anything.
func parseStat(data []byte) (state byte, started uint64, err error) {
	_, rest, ok := bytes.Cut(data, []byte("("))
	if !ok {
		return 0, 0, fmt.Errorf("process state %q: no name", data)
	}
	end := bytes.LastIndexByte(rest, ')')
	if end < 0 {
		return 0, 0, fmt.Errorf("process state %q: no end of name", data)
	}
	f := strings.Fields(string(rest[end+1:]))
	if len(f) < 20 || f[0] == "" {
		return 0, 0, fmt.Errorf("process state %q: too few fields", data)
	}
	started, err = strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("process state %q: %w", data, err)
	}
	return f[0][0], started, nil
}

func bootID() string {
	// Unreadable means the same on each read, which is all that is asked.
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}
