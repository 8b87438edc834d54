package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxObjects is how many objects a PlanRequest may have.
const MaxObjects = 500

// Objects are objects of Kubernetes as JSON, at most MaxObjects.
type Objects []json.RawMessage

// UnmarshalJSON reads a list. It stops at the first object that is too many, since
// millions of empty ones fit into a small request.
func (o *Objects) UnmarshalJSON(data []byte) error {
	*o = nil
	if bytes.Equal(data, []byte("null")) {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.New("objects: must be a list")
	}
	for d.More() {
		if len(*o) == MaxObjects {
			return tooManyObjects()
		}
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		*o = append(*o, raw)
	}
	return nil
}

// Check returns an error if there are too many.
func (o Objects) Check() error {
	if len(o) > MaxObjects {
		return tooManyObjects()
	}
	return nil
}

func tooManyObjects() error {
	return fmt.Errorf("objects: there are more than the %d that one plan may have; divide them", MaxObjects)
}
