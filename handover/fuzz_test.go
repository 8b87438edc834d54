package handover

import (
	"bytes"
	"encoding/json"
	"testing"
)

// encode returns a message as it is sent.
func encode(t testing.TB, m message) []byte {
	t.Helper()
	h, err := m.header()
	if err != nil {
		t.Fatal(err)
	}
	return append(h[:], m.data...)
}

// decode reads a message that begins with a whole header.
func decode(b []byte) (message, int, error) {
	return read([headerSize]byte(b[:headerSize]), bytes.NewReader(b[headerSize:]))
}

func FuzzMessage(f *testing.F) {
	f.Add(encode(f, message{kind: kindGo}))
	f.Add(encode(f, message{kind: kindParcel, data: []byte("{}"), files: []int{1, 2}}))
	f.Add(append([]byte("ECLH\x05\xff\x00\x00\xff\xff\xff\xff"), "short"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		m, files, err := decode(b)
		if err != nil {
			return
		}
		if files > maxFiles || len(m.data) > len(b)-headerSize {
			t.Fatalf("got %d descriptors and %d bytes of %d", files, len(m.data), len(b)-headerSize)
		}
		again, n, err := decode(encode(t, message{kind: m.kind, data: m.data, files: make([]int, files)}))
		if err != nil || again.kind != m.kind || !bytes.Equal(again.data, m.data) || n != files {
			t.Errorf("encoded and decoded: got %v %q %d, %v; want %v %q %d", again.kind, again.data, n, err, m.kind, m.data, files)
		}
	})
}

func FuzzEstate(f *testing.F) {
	good, _ := json.Marshal(Estate{Version: "v1", Files: []string{"lock", "api 10.0.0.1:1"}, Health: json.RawMessage("{}"), Epochs: map[string]string{"prod": "e.1"}})
	f.Add(good, 2)
	f.Add([]byte(`{"files":["lock","lock"]}`), 2)
	f.Fuzz(func(t *testing.T, b []byte, files int) {
		e, err := decodeEstate(b, files)
		if err != nil {
			return
		}
		seen := make(map[string]bool)
		for _, name := range e.Files {
			if name == "" || seen[name] {
				t.Fatalf("descriptors %q: one has no name, or that of another", e.Files)
			}
			seen[name] = true
		}
		if len(e.Files) != files {
			t.Fatalf("got %d names for %d descriptors", len(e.Files), files)
		}
	})
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"protocols":[1],"purpose":"take-over","edge":"edge-1","version":"v1"}`))
	f.Add([]byte(`{"protocols":[99]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decodeHello(b)
		if err == nil && len(h.Protocols) == 0 {
			t.Fatal("a hello without protocols was taken")
		}
	})
}
