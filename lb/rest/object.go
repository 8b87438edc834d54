package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/eclusa-lb/eclusa/lb"
)

type rawJSON = json.RawMessage

// maxDepth bounds the nesting of objects within an entry that are taken apart.
// A load balancer is three deep; each level is scanned once more, so that
// without a bound a small body could cost a long time.
const maxDepth = 8

// maxMembers bounds the members of one object, which take ten times the memory
// of their text.
const maxMembers = 200_000

// member is one member of a JSON object.
type member struct {
	key   string
	value rawJSON
}

// object is a JSON object taken apart, in its own order.
type object []member

// get returns the member's value, nil if there is none.
func (o object) get(key string) rawJSON {
	for _, m := range o {
		if m.key == key {
			return m.value
		}
	}
	return nil
}

// parseObject takes an object apart by one level. Doubled keys, trailing data
// and everything that is no object are ErrInvalid, too many members ErrExhausted,
// both told with the object's path.
func parseObject(path string, data []byte) (object, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	complain := func(err error) error {
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("%s: ends after %d bytes in the middle of a value: %w", pathName(path), len(data), lb.ErrInvalid)
		default:
			return fmt.Errorf("%s: byte %d: %w: %w", pathName(path), dec.InputOffset(), err, lb.ErrInvalid)
		}
	}
	token, err := dec.Token()
	if err != nil {
		return nil, complain(err)
	}
	if token != json.Delim('{') {
		return nil, fmt.Errorf("%s: must be an object: %w", pathName(path), lb.ErrInvalid)
	}
	var o object
	seen := make(map[string]bool)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, complain(err)
		}
		key, ok := token.(string)
		if !ok {
			return nil, complain(fmt.Errorf("%v is no key", token))
		}
		if seen[key] {
			return nil, fmt.Errorf("%s: key %q is there twice: %w", pathName(path), key, lb.ErrInvalid)
		}
		seen[key] = true
		var value rawJSON
		if err := dec.Decode(&value); err != nil {
			return nil, complain(err)
		}
		if o = append(o, member{key, value}); len(o) > maxMembers {
			return nil, fmt.Errorf("%s: more than %d members: %w", pathName(path), maxMembers, lb.ErrExhausted)
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, complain(err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: something follows after the object: %w", pathName(path), lb.ErrInvalid)
	}
	return o, nil
}

// decodeFields reads an object strictly: every member must be among fields, by
// its exact name. What is not there stays as it is.
func decodeFields(path string, data []byte, fields map[string]any) error {
	o, err := parseObject(path, data)
	if err != nil {
		return err
	}
	for _, m := range o {
		field, ok := fields[m.key]
		if !ok {
			return fmt.Errorf("%s: unknown field %q: %w", pathName(path), clip(m.key, maxTitle), lb.ErrInvalid)
		}
		if err := json.Unmarshal(m.value, field); err != nil {
			return fmt.Errorf("%s: %s: %w: %w", pathName(path), m.key, err, lb.ErrInvalid)
		}
	}
	return nil
}

func pathName(path string) string {
	if path == "" {
		return "body"
	}
	return path
}

func isObject(v rawJSON) bool { return len(v) > 0 && v[0] == '{' }
func isNull(v rawJSON) bool   { return string(v) == "null" }

// objectWriter puts an object together.
type objectWriter struct{ buf bytes.Buffer }

// put appends a member.
func (w *objectWriter) put(key string, value rawJSON) {
	if w.buf.Len() == 0 {
		w.buf.WriteByte('{')
	} else {
		w.buf.WriteByte(',')
	}
	w.buf.Write(quoteJSON(key))
	w.buf.WriteByte(':')
	w.buf.Write(value)
}

// empty reports whether nothing was put.
func (w *objectWriter) empty() bool { return w.buf.Len() == 0 }

// bytes returns the object. The writer is of no use afterwards.
func (w *objectWriter) bytes() rawJSON {
	if w.empty() {
		return rawJSON("{}")
	}
	w.buf.WriteByte('}')
	return w.buf.Bytes()
}

func quoteJSON(s string) []byte {
	q, err := json.Marshal(s)
	if err != nil { // a string always has a JSON form
		return []byte(`""`)
	}
	return q
}

// mergeJSON applies an RFC 7396 merge patch to base, which is nil if there is
// nothing yet.
func mergeJSON(path string, base, patch rawJSON, depth int) (rawJSON, error) {
	if !isObject(patch) {
		return patch, nil
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("%s: more than %d objects within one another: %w", pathName(path), maxDepth, lb.ErrInvalid)
	}
	changes, err := parseObject(path, patch)
	if err != nil {
		return nil, err
	}
	var was object
	if isObject(base) {
		if was, err = parseObject(path, base); err != nil {
			return nil, err
		}
	}
	at := make(map[string]int, len(was))
	for i, m := range was {
		at[m.key] = i
	}
	out := was
	for _, m := range changes {
		i, held := at[m.key]
		switch {
		case isNull(m.value) && held:
			out[i].value = nil
			continue
		case isNull(m.value):
			continue
		}
		var old rawJSON
		if held {
			old = out[i].value
		}
		merged, err := mergeJSON(path+"."+m.key, old, m.value, depth+1)
		if err != nil {
			return nil, err
		}
		if held {
			out[i].value = merged
		} else {
			out = append(out, member{m.key, merged})
		}
	}
	var w objectWriter
	for _, m := range out {
		if m.value != nil {
			w.put(m.key, m.value)
		}
	}
	return w.bytes(), nil
}

// diffJSON returns the merge patch that turns the object from, nil if there is
// none, into the object to.
func diffJSON(from, to rawJSON) (rawJSON, error) {
	var was object
	var err error
	if isObject(from) {
		if was, err = parseObject("", from); err != nil {
			return nil, err
		}
	}
	is, err := parseObject("", to)
	if err != nil {
		return nil, err
	}
	old := make(map[string]rawJSON, len(was))
	for _, m := range was {
		old[m.key] = m.value
	}
	var w objectWriter
	for _, m := range is {
		before, held := old[m.key]
		delete(old, m.key)
		switch {
		case held && bytes.Equal(before, m.value), !held && isNull(m.value):
		case isObject(m.value):
			sub, err := diffJSON(before, m.value)
			if err != nil {
				return nil, err
			}
			if isObject(before) && string(sub) == "{}" {
				continue // the same in another order
			}
			w.put(m.key, sub)
		default:
			w.put(m.key, m.value)
		}
	}
	for _, m := range was {
		if _, gone := old[m.key]; gone {
			w.put(m.key, rawJSON("null"))
		}
	}
	return w.bytes(), nil
}
