package proxy

// never is the time of a timer that is not set.
const never = int64(1<<63 - 1)

// expirer is what a timer belongs to.
type expirer interface {
	handler
	// expire is called in the loop when the timer's time has come. The timer is
	// not set any more.
	expire(l *loop)
}

// timer calls its target once at a time. It is part of its target and owned by
// its loop; the zero value is not set.
type timer struct {
	at     int64
	pos    int // index in the heap plus one; 0 is not set
	target expirer
}

// timers is a heap of timers by time.
type timers struct {
	heap []*timer
}

// next returns the time of the earliest timer.
func (h *timers) next() int64 {
	if len(h.heap) == 0 {
		return never
	}
	return h.heap[0].at
}

// set sets t, anew if it was set before.
func (h *timers) set(t *timer, at int64, target expirer) {
	t.target = target
	if t.pos == 0 {
		t.at = at
		h.heap = append(h.heap, t)
		t.pos = len(h.heap)
		h.up(t.pos - 1)
		return
	}
	before := t.at
	t.at = at
	if at < before {
		h.up(t.pos - 1)
	} else {
		h.down(t.pos - 1)
	}
}

// stop makes t not set.
func (h *timers) stop(t *timer) {
	if t.pos == 0 {
		return
	}
	i, last := t.pos-1, len(h.heap)-1
	h.swap(i, last)
	h.heap[last] = nil
	h.heap = h.heap[:last]
	t.pos, t.target = 0, nil
	if i < last {
		h.down(i)
		h.up(i)
	}
}

// pop takes out the earliest timer if its time has come.
func (h *timers) pop(now int64) expirer {
	if len(h.heap) == 0 || h.heap[0].at > now {
		return nil
	}
	target := h.heap[0].target
	h.stop(h.heap[0])
	return target
}

func (h *timers) swap(i, j int) {
	h.heap[i], h.heap[j] = h.heap[j], h.heap[i]
	h.heap[i].pos, h.heap[j].pos = i+1, j+1
}

func (h *timers) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h.heap[parent].at <= h.heap[i].at {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *timers) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(h.heap) {
			return
		}
		if right := child + 1; right < len(h.heap) && h.heap[right].at < h.heap[child].at {
			child = right
		}
		if h.heap[i].at <= h.heap[child].at {
			return
		}
		h.swap(i, child)
		i = child
	}
}
