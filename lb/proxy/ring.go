package proxy

// element is an element of a ring, or its head. The zero value is an element of
// no ring, or the head of an empty one.
type element[T any] struct {
	prev, next *element[T]
	item       T
}

// push puts e with its item at the back of the ring of the head h.
func (h *element[T]) push(e *element[T], item T) {
	if h.next == nil {
		h.prev, h.next = h, h
	}
	e.item = item
	e.prev, e.next = h.prev, h
	h.prev.next, h.prev = e, e
}

// remove takes e out of its ring, if it is in one.
func (e *element[T]) remove() {
	if e.next == nil {
		return
	}
	var none T
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next, e.item = nil, nil, none
}

// front returns the first element of the ring of the head h, nil if it is empty.
func (h *element[T]) front() *element[T] {
	if h.next == h {
		return nil
	}
	return h.next
}
