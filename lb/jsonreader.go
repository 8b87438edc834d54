package lb

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// maxObjects bounds what one text may unfold to: "{}" is two bytes, and a
// LoadBalancer some hundred.
const maxObjects = 200_000

// A jsonReader reads one JSON text from front to back into typed values, and
// knows the path of the value that it is at. It is strict where encoding/json is
// lenient: keys are matched exactly and may not be doubled, null is no number,
// and text must be valid UTF-8. Since it only ever reads what its caller
// expects, nothing in the text can make it recurse.
//
// The first error stays; after it every method returns a zero value.
type jsonReader struct {
	data    []byte
	pos     int
	path    []step
	words   map[string]string // texts that come again and again, kept once
	objects int
	err     error
}

// A step leads from a value to one within it.
type step struct {
	kind stepKind
	name string
	at   int
}

type stepKind uint8

const (
	stepField stepKind = iota // name is a field
	stepKey                   // name is a key of a map
	stepIndex                 // at is an index of a list
)

// fail keeps the reason why the value at the reader's path cannot be used.
func (r *jsonReader) fail(kind error, format string, args ...any) {
	if r.err != nil {
		return
	}
	where := pathOf(r.path)
	if where == "" {
		where = "the top level"
	}
	r.err = fmt.Errorf("%s (byte %d): %s: %w", where, r.pos, fmt.Sprintf(format, args...), kind)
}

// want fails because what comes next is not what it should be.
func (r *jsonReader) want(right string) {
	r.fail(ErrInvalid, "%s: must be %s", r.describe(), right)
}

// describe says what comes next.
func (r *jsonReader) describe() string {
	rest := r.data[r.pos:]
	if len(rest) == 0 {
		return "the text ends here"
	}
	switch rest[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		if s, ok := (&jsonReader{data: rest}).text(); ok {
			return quoted(string(s))
		}
		return "a broken text"
	}
	end := bytes.IndexAny(rest, " \t\r\n,:]}\"")
	if end < 0 {
		end = len(rest)
	}
	end = max(end, 1)
	const most = 32
	return strings.ToValidUTF8(string(rest[:min(end, most)]), "\ufffd")
}

// space skips white space and returns the byte after it, zero at the end.
func (r *jsonReader) space() byte {
	for r.pos < len(r.data) {
		switch c := r.data[r.pos]; c {
		case ' ', '\t', '\r', '\n':
			r.pos++
		default:
			return c
		}
	}
	return 0
}

// open enters an object or a list.
func (r *jsonReader) open(bracket byte, right string) bool {
	if r.err != nil {
		return false
	}
	if r.space() != bracket {
		r.want(right)
		return false
	}
	r.pos++
	return true
}

// more reports whether another element follows the n that were read, and goes
// to it; otherwise it leaves the object or list.
func (r *jsonReader) more(bracket byte, n int) bool {
	if r.err != nil {
		return false
	}
	c := r.space()
	if c == bracket {
		r.pos++
		return false
	}
	if n == 0 {
		return true
	}
	if c != ',' {
		r.want(fmt.Sprintf("',' or '%c'", bracket))
		return false
	}
	r.pos++
	if r.space() == bracket {
		r.fail(ErrInvalid, "',' before '%c': must stand between two elements only", bracket)
		return false
	}
	return true
}

// key reads an object's next key with its colon.
func (r *jsonReader) key() ([]byte, bool) {
	if r.space() != '"' {
		r.want("a key in double quotes")
		return nil, false
	}
	k, ok := r.text()
	if !ok {
		return nil, false
	}
	if r.space() != ':' {
		r.want("':' after the key")
		return nil, false
	}
	r.pos++
	return k, true
}

// null reads a null if there is one.
func (r *jsonReader) null() bool {
	if r.err != nil || r.space() != 'n' || !bytes.HasPrefix(r.data[r.pos:], []byte("null")) {
		return false
	}
	r.pos += len("null")
	return true
}

// end makes sure that nothing follows.
func (r *jsonReader) end() {
	if r.err == nil && r.space() != 0 || r.err == nil && r.pos < len(r.data) {
		r.fail(ErrInvalid, "%s: nothing may follow the end of the value", r.describe())
	}
}

func (r *jsonReader) boolean() bool {
	if r.err != nil {
		return false
	}
	r.space()
	for _, v := range []string{"true", "false"} {
		if bytes.HasPrefix(r.data[r.pos:], []byte(v)) {
			r.pos += len(v)
			return v == "true"
		}
	}
	r.want("true or false")
	return false
}

// integer reads a whole number from lowest to highest.
func (r *jsonReader) integer(lowest int64, highest uint64) (v int64, u uint64) {
	if r.err != nil {
		return 0, 0
	}
	r.space()
	end := r.pos
	for end < len(r.data) && strings.IndexByte("+-.0123456789eE", r.data[end]) >= 0 {
		end++
	}
	digits := string(r.data[r.pos:end])
	var err error
	if strings.HasPrefix(digits, "-") {
		v, err = strconv.ParseInt(digits, 10, 64)
	} else if u, err = strconv.ParseUint(digits, 10, 64); u <= math.MaxInt64 {
		v = int64(u)
	}
	unsigned := strings.TrimPrefix(digits, "-")
	padded := len(unsigned) > 1 && unsigned[0] == '0' || strings.HasPrefix(digits, "+")
	if err != nil || padded || v < lowest || u > highest {
		r.want(fmt.Sprintf("a whole number from %d to %d", lowest, highest))
		return 0, 0
	}
	r.pos = end
	return v, u
}

// text reads a text. The bytes are the reader's own or the input's.
func (r *jsonReader) text() ([]byte, bool) {
	if r.err != nil {
		return nil, false
	}
	if r.space() != '"' {
		r.want("text in double quotes")
		return nil, false
	}
	start := r.pos + 1
	ascii := true
	for i := start; i < len(r.data); i++ {
		switch c := r.data[i]; {
		case c == '"':
			s := r.data[start:i]
			if !ascii && !utf8.Valid(s) {
				r.fail(ErrInvalid, "text: must be valid UTF-8")
				return nil, false
			}
			r.pos = i + 1
			return s, true
		case c == '\\':
			return r.escaped(start)
		case c < ' ':
			r.fail(ErrInvalid, "text: control character %#02x must be written as \\u%04x", c, c)
			return nil, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
	}
	r.fail(ErrInvalid, "text: the closing double quote is missing")
	return nil, false
}

// escaped reads a text with escapes in it, which starts at start.
func (r *jsonReader) escaped(start int) ([]byte, bool) {
	end := start
	for end < len(r.data) && r.data[end] != '"' {
		if r.data[end] == '\\' {
			end++
		}
		end++
	}
	if end >= len(r.data) {
		r.fail(ErrInvalid, "text: the closing double quote is missing")
		return nil, false
	}
	s, fault := unescape(r.data[start:end])
	if fault != "" {
		r.fail(ErrInvalid, "text: %s", fault)
		return nil, false
	}
	r.pos = end + 1
	return s, true
}

// unescape returns what a JSON text between its quotes stands for, or what is
// wrong with it.
func unescape(raw []byte) (text []byte, fault string) {
	out := make([]byte, 0, len(raw))
	for i := 0; i < len(raw); i++ {
		c := raw[i]
		if c < ' ' {
			return nil, fmt.Sprintf("control character %#02x must be written as \\u%04x", c, c)
		}
		if c != '\\' {
			out = append(out, c)
			continue
		}
		i++
		if at := strings.IndexByte(`"\/bfnrt`, raw[i]); at >= 0 {
			out = append(out, "\"\\/\b\f\n\r\t"[at])
			continue
		}
		u, ok := codeUnit(raw[i:])
		if !ok {
			return nil, fmt.Sprintf("%q is no escape", raw[i-1:min(i+5, len(raw))])
		}
		i += 4
		if utf16.IsSurrogate(u) {
			if i+2 >= len(raw) || raw[i+1] != '\\' {
				return nil, "half of a surrogate pair stands alone"
			}
			second, _ := codeUnit(raw[i+2:])
			if u = utf16.DecodeRune(u, second); u == utf8.RuneError {
				return nil, "half of a surrogate pair stands alone"
			}
			i += 6
		}
		out = utf8.AppendRune(out, u)
	}
	if !utf8.Valid(out) {
		return nil, "must be valid UTF-8"
	}
	return out, ""
}

// codeUnit reads "uXXXX".
func codeUnit(b []byte) (rune, bool) {
	if len(b) < 5 || b[0] != 'u' {
		return 0, false
	}
	v := rune(0)
	for _, c := range b[1:5] {
		d := strings.IndexByte("0123456789abcdef", c|0x20)
		if d < 0 || c < '0' {
			return 0, false
		}
		v = v<<4 | rune(d) //nolint:gosec // d is below 16
	}
	return v, true
}

// word reads a text that is likely to come again.
func (r *jsonReader) word() string {
	b, _ := r.text()
	if len(b) == 0 {
		return ""
	}
	if s, ok := r.words[string(b)]; ok {
		return s
	}
	if r.words == nil {
		r.words = map[string]string{}
	}
	s := string(b)
	r.words[s] = s
	return s
}

// A field of T says how the value of one key is read.
type field[T any] struct {
	name string
	read func(*jsonReader, *T)
}

// readStruct reads an object with fixed fields.
func readStruct[T any](r *jsonReader, into *T, fields []field[T]) {
	if r.objects++; r.objects > maxObjects {
		r.fail(ErrExhausted, "more than %d objects in one configuration", maxObjects)
	}
	if !r.open('{', "an object") {
		return
	}
	var seen uint64
	for n := 0; r.more('}', n); n++ {
		key, ok := r.key()
		if !ok {
			return
		}
		i := slices.IndexFunc(fields, func(f field[T]) bool { return f.name == string(key) })
		if i < 0 {
			r.unknown(string(key), fieldNames(fields))
			return
		}
		r.path = append(r.path, step{kind: stepField, name: fields[i].name})
		if seen&(1<<i) != 0 {
			r.fail(ErrInvalid, "the key is there twice: keep one")
			return
		}
		seen |= 1 << i
		fields[i].read(r, into)
		r.path = r.path[:len(r.path)-1]
	}
}

// fieldNames lists the names of fields for a message.
func fieldNames[T any](fields []field[T]) []string {
	var names []string
	for _, f := range fields {
		names = append(names, f.name)
	}
	return names
}

func (r *jsonReader) unknown(key string, known []string) {
	right := "nothing may stand here"
	if len(known) > 0 {
		right = "must be one of " + strings.Join(known, ", ")
	}
	r.fail(ErrInvalid, "unknown field %s: %s", quoted(key), right)
}

// readMap reads an object whose keys are names. One without entries is read as
// an empty map that is not nil.
func readMap[K ~string, V any](r *jsonReader, read func(*jsonReader) V) map[K]V {
	if !r.open('{', "an object") {
		return nil
	}
	m := map[K]V{}
	for n := 0; r.more('}', n); n++ {
		b, ok := r.key()
		if !ok {
			return nil
		}
		key := K(b)
		r.path = append(r.path, step{kind: stepKey, name: string(key)})
		if _, doubled := m[key]; doubled {
			r.fail(ErrInvalid, "the key is there twice: keep one")
			return nil
		}
		m[key] = read(r)
		r.path = r.path[:len(r.path)-1]
	}
	return m
}

// readList reads a list; null is read as nil.
func readList[V any](r *jsonReader, read func(*jsonReader) V) []V {
	if r.null() || !r.open('[', "a list") {
		return nil
	}
	list := []V{}
	for n := 0; r.more(']', n); n++ {
		r.path = append(r.path, step{kind: stepIndex, at: n})
		list = append(list, read(r))
		if r.err != nil {
			return nil
		}
		r.path = r.path[:len(r.path)-1]
	}
	return list
}

// pathOf writes steps as `loadBalancers["a"].listeners[1].port`.
func pathOf(steps []step) string {
	var b strings.Builder
	for i, s := range steps {
		switch {
		case s.kind == stepKey:
			fmt.Fprintf(&b, "[%s]", quoted(s.name))
		case s.kind == stepIndex:
			fmt.Fprintf(&b, "[%d]", s.at)
		case i > 0:
			b.WriteString("." + s.name)
		default:
			b.WriteString(s.name)
		}
	}
	return b.String()
}

// quoted quotes a text of any length for a message of bounded length.
func quoted(s string) string {
	const most = 128
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "..."
	}
	return strconv.Quote(s)
}
