package edge

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// maxHealth is the largest health file that is read, in bytes.
const maxHealth = 256 << 20

// The health file remembers what was known of members, so that a starting edge
// does not take ignorance for illness. Losing it costs little: it is written
// now and then, and not forced to the disk.
type healthRecord[R any] struct {
	Schema  string `json:"schema"`
	Results []R    `json:"results"`
}

type savedResult struct {
	Addr     netip.AddrPort     `json:"addr"`
	Spec     healthcheck.Spec   `json:"spec"`
	State    healthcheck.State  `json:"state"`
	Since    time.Time          `json:"since"`
	Answered bool               `json:"answered,omitempty"`
	Reason   healthcheck.Reason `json:"reason,omitempty"`
	Error    string             `json:"error,omitempty"`
}

// decodeHealth leaves out what a newer program has saved of checks that this one
// does not know: nothing else of what is known is lost by going back.
func decodeHealth(data []byte) (map[healthcheck.Target]healthcheck.Result, error) {
	var r healthRecord[json.RawMessage]
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	results := make(map[healthcheck.Target]healthcheck.Result, len(r.Results))
	for _, raw := range r.Results {
		var s savedResult
		if json.Unmarshal(raw, &s) != nil {
			continue
		}
		if !s.Addr.IsValid() {
			return nil, errors.New("a result without address")
		}
		results[healthcheck.Target{Addr: s.Addr, Spec: s.Spec}] = healthcheck.Result{
			State: s.State, Since: s.Since, Answered: s.Answered, Reason: s.Reason, Error: s.Error,
		}
	}
	return results, nil
}

func encodeHealth(results map[healthcheck.Target]healthcheck.Result) ([]byte, error) {
	r := healthRecord[savedResult]{Schema: lb.Schema, Results: make([]savedResult, 0, len(results))}
	for t, k := range results {
		r.Results = append(r.Results, savedResult{
			Addr: t.Addr, Spec: t.Spec, State: k.State, Since: k.Since, Answered: k.Answered, Reason: k.Reason, Error: k.Error,
		})
	}
	return json.Marshal(r)
}

// loadHealth reads the health file; what cannot be read is unknown.
func (e *Edge) loadHealth() map[healthcheck.Target]healthcheck.Result {
	results := make(map[healthcheck.Target]healthcheck.Result)
	data, err := readBounded(e.healthPath, maxHealth)
	if errors.Is(err, os.ErrNotExist) {
		return results
	}
	if err == nil {
		results, err = decodeHealth(data)
	}
	if err != nil {
		e.log.Warn("what was known about the members' health cannot be read; it is found out anew", zap.Error(err))
		return make(map[healthcheck.Target]healthcheck.Result)
	}
	return results
}

func readBounded(path string, most int64) ([]byte, error) {
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if info.Size() > most {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", path, info.Size(), most)
	}
	return os.ReadFile(path)
}

// saveHealthNowAndThen has saved what is known when that has changed, but not
// with every change.
func (l *loop) saveHealthNowAndThen() {
	if l.healthChanged && time.Since(l.healthSaved) >= healthInterval {
		l.saveHealth()
	}
}

// saveHealth has saved what is known of all targets in the plan.
func (l *loop) saveHealth() {
	l.healthChanged, l.healthSaved = false, time.Now()
	l.saver.offer(l.knownHealth())
}

// knownHealth returns what is known of all targets in the plan.
func (l *loop) knownHealth() map[healthcheck.Target]healthcheck.Result {
	known := make(map[healthcheck.Target]healthcheck.Result, len(l.plan))
	for _, m := range l.plan {
		for _, t := range []healthcheck.Target{m.target, m.witness} {
			if r, ok := l.known(t); ok && r.State != healthcheck.Unknown {
				known[t] = r
			}
		}
	}
	return known
}
