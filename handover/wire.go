package handover

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

const (
	headerSize = 12
	// maxFiles is the largest number of descriptors in a message; the kernel passes
	// no more than 253 at once.
	maxFiles = 250
	// maxData is the largest message in bytes.
	maxData = 256 << 20
	// readChunk bounds what is allocated before that much has come.
	readChunk = 1 << 20
)

// magic begins every message.
var magic = [4]byte{'E', 'C', 'L', 'H'}

// kind is what a message says.
type kind byte

// The kinds. Their numbers are part of the protocol.
const (
	kindHello kind = iota + 1
	kindRefuse
	kindAbort
	kindEstate
	kindReady
	kindParcel
	kindGot
	kindEnd
	kindAdopted
	kindGo
	kindServing
	kindOutcome
)

var kindNames = [...]string{"", "hello", "refuse", "abort", "estate", "ready", "parcel", "got", "end", "adopted", "go", "serving", "outcome"}

func (k kind) String() string {
	if k >= 1 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("message %d", byte(k))
}

// message is one message. Its files belong to whoever received it.
type message struct {
	kind  kind
	data  []byte
	files []int
}

// header returns how a message begins.
func (m message) header() ([headerSize]byte, error) {
	var h [headerSize]byte
	if len(m.files) > maxFiles || len(m.data) > maxData {
		return h, fmt.Errorf("send %s: %d descriptors and %d bytes are more than %d and %d", m.kind, len(m.files), len(m.data), maxFiles, maxData)
	}
	copy(h[:], magic[:])
	h[4], h[5] = byte(m.kind), byte(len(m.files))          //nolint:gosec // at most maxFiles
	binary.BigEndian.PutUint32(h[8:], uint32(len(m.data))) //nolint:gosec // at most maxData
	return h, nil
}

// parseHeader returns what follows a header.
func parseHeader(h [headerSize]byte) (k kind, files, size int, err error) {
	if [4]byte(h[:4]) != magic {
		return 0, 0, 0, errors.New("this is not the hand-over of an edge")
	}
	k, files = kind(h[4]), int(h[5])
	n := binary.BigEndian.Uint32(h[8:])
	if files > maxFiles || n > maxData {
		return 0, 0, 0, fmt.Errorf("%s: %d descriptors and %d bytes are more than %d and %d", k, files, n, maxFiles, maxData)
	}
	return k, files, int(n), nil
}

// read reads a message but for its descriptors: first has the header's bytes.
func read(h [headerSize]byte, rest io.Reader) (m message, files int, err error) {
	var size int
	if m.kind, files, size, err = parseHeader(h); err != nil {
		return message{}, 0, err
	}
	for len(m.data) < size {
		at := len(m.data)
		m.data = append(m.data, make([]byte, min(size-at, readChunk))...)
		if _, err := io.ReadFull(rest, m.data[at:]); err != nil {
			return message{}, 0, fmt.Errorf("%s: %w", m.kind, noEOF(err))
		}
	}
	return m, files, nil
}

// noEOF tells an end within a message from one between two.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Conn is the connection between giver and taker. One goroutine uses it at a time.
type Conn struct {
	unix     *net.UnixConn
	peer     peer
	patience time.Duration // in place of ServingTimeout; 0 is that one
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.peer.close()
	return c.unix.Close()
}

// within bounds what is sent and received from now on.
func (c *Conn) within(d time.Duration) { _ = c.unix.SetDeadline(time.Now().Add(d)) }

func (c *Conn) send(m message) error {
	h, err := m.header()
	if err != nil {
		return err
	}
	var rights []byte
	if len(m.files) > 0 {
		rights = unix.UnixRights(m.files...)
	}
	// Descriptors go with the first byte.
	if _, _, err := c.unix.WriteMsgUnix(h[:], rights, nil); err != nil {
		return fmt.Errorf("send %s: %w", m.kind, err)
	}
	if len(m.data) > 0 {
		if _, err := c.unix.Write(m.data); err != nil {
			return fmt.Errorf("send %s: %w", m.kind, err)
		}
	}
	return nil
}

// sendJSON sends a message with a value as its data.
func (c *Conn) sendJSON(k kind, v any, files ...int) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("send %s: %w", k, err)
	}
	return c.send(message{kind: k, data: data, files: files})
}

// receive returns the next message, io.EOF if the peer has closed the connection.
func (c *Conn) receive() (message, error) {
	var h [headerSize]byte
	oob := make([]byte, unix.CmsgSpace(4*(maxFiles+3)))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(h[:], oob)
	if err != nil {
		return message{}, err
	}
	if n == 0 {
		return message{}, io.EOF
	}
	files, err := descriptors(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("descriptors were lost: too many files are open (LimitNOFILE)")
	}
	if err == nil {
		_, err = io.ReadFull(c.unix, h[n:])
		err = noEOF(err)
	}
	var m message
	if err == nil {
		var want int
		if m, want, err = read(h, c.unix); err == nil && want != len(files) {
			err = fmt.Errorf("%s: came with %d descriptors and should have %d", m.kind, len(files), want)
		}
	}
	if err != nil {
		closeAll(files)
		return message{}, fmt.Errorf("receive: %w", err)
	}
	m.files = files
	return m, nil
}

// descriptors returns what came with a message.
func descriptors(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []int
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // something else than descriptors
		}
		files = append(files, got...)
	}
	return files, nil
}

func closeAll(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd)
	}
}

// reason is the data of refuse and abort.
type reason struct {
	Reason string `json:"reason"`
}

// expect receives a message of a kind. A refusal or an abort is returned as the
// error that it tells.
func (c *Conn) expect(want kind) (message, error) {
	m, err := c.receive()
	if err != nil {
		return message{}, fmt.Errorf("wait for %q: %w", want, err)
	}
	if m.kind == want {
		return m, nil
	}
	closeAll(m.files)
	if m.kind != kindRefuse && m.kind != kindAbort {
		return message{}, fmt.Errorf("wait for %q: got %q", want, m.kind)
	}
	return message{}, m.refusal()
}

// refusal returns what a refuse or an abort says.
func (m message) refusal() error {
	var r reason
	if err := json.Unmarshal(m.data, &r); err != nil || r.Reason == "" {
		r.Reason = "it does not say why"
	}
	return &RefusedError{Reason: r.Reason}
}

// RefusedError is what the other process says why it does not go on.
type RefusedError struct{ Reason string }

// Error returns the reason.
func (e *RefusedError) Error() string { return "the other process says: " + e.Reason }

// stop tells the other side why it is not gone on; it may be gone already.
func (c *Conn) stop(k kind, why error) {
	c.within(time.Second)
	_ = c.sendJSON(k, reason{why.Error()})
}
