package lab

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// narrator writes what happens, each line with the seconds since the start.
// Safe for concurrent use.
type narrator struct {
	start time.Time
	mu    sync.Mutex
	w     io.Writer
}

func narrate(w io.Writer) *narrator {
	if w == nil {
		w = io.Discard
	}
	return &narrator{start: time.Now(), w: w}
}

func (n *narrator) say(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	// A narration that cannot be written must not stop the lab.
	_, _ = fmt.Fprintf(n.w, "%6.1fs  %s\n", time.Since(n.start).Seconds(), fmt.Sprintf(format, args...))
}

// count is a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
