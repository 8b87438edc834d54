package healthcheck

import (
	"strings"
	"testing"
	"time"
)

// TestJudge plays probes, one letter each: s a success, t a timeout, r a refusal,
// d an answer 503. The states are those after each probe: ? unknown, U up,
// D draining, x down. An exclamation mark follows where users are told to look.
func TestJudge(t *testing.T) {
	tests := []struct {
		name   string
		seed   Result
		probes string
		want   string
	}{
		{"new member takes traffic after one success", Result{}, "ss", "U!U"},
		{"new member needs three failures", Result{}, "tttt", "?!?x!x"},
		{"new member up after failures", Result{}, "tts", "?!?U!"},
		{"new member drains at once", Result{}, "d", "D!"},
		{"new member takes traffic after one success, whatever it said before", Result{}, "ds", "D!U!"},
		{"new member that refused takes traffic after one success", Result{}, "rrrs", "?!?x!U!"},
		{"only the first time", Result{}, "dsdss", "D!U!D!D!U!"},
		{"up needs three failures", Result{State: Up, Answered: true}, "ttt", "U!Ux!"},
		{"a success between starts over", Result{State: Up, Answered: true}, "ttsttt", "U!UU!U!Ux!"},
		{"kinds of failures count together", Result{State: Up, Answered: true}, "trt", "U!U!x!"},
		{"one 503 drains", Result{State: Up, Answered: true}, "dd", "D!D"},
		{"draining needs two successes", Result{State: Draining, Answered: true}, "ss", "DU!"},
		{"draining again starts over", Result{State: Draining, Answered: true}, "sdss", "DD!D!U!"},
		{"draining goes down after three", Result{State: Draining, Answered: true}, "ttt", "D!Dx!"},
		{"503 between failures starts over", Result{State: Draining, Answered: true}, "ttdtt", "D!DD!D!D"},
		{"down needs two successes", Result{State: Down, Answered: true}, "ss", "xU!"},
		{"down after success and failure", Result{State: Down, Answered: true}, "stss", "xx!x!U!"},
		{"down drains at once", Result{State: Down, Answered: true}, "d", "D!"},
		{"first answer is told", Result{State: Up}, "s", "U!"},
		{"a 503 is an answer", Result{State: Draining, Reason: HTTPStatus}, "d", "D!"},
		{"seeded reason is known", Result{State: Down, Reason: Timeout}, "tr", "xx!"},
		{"seed that is no state", Result{State: 9}, "s", "U!"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRecord(tt.seed, time.Unix(1, 0))
			var got strings.Builder
			for _, p := range tt.probes {
				ev := evidence{at: time.Unix(2, 0)}
				switch p {
				case 't':
					ev.failure = &Failure{Reason: Timeout, Text: "no answer"}
				case 'r':
					ev.failure = &Failure{Reason: Refused, Text: "connection refused"}
				case 'd':
					ev.failure = &Failure{Reason: HTTPStatus, Text: "HTTP 503", Draining: true}
				}
				changed := r.judge(ev, Spec{}.WithDefaults())
				got.WriteByte("?UDx"[r.state])
				if changed {
					got.WriteByte('!')
				}
			}
			if got.String() != tt.want {
				t.Errorf("probes %s: got states %s; want %s", tt.probes, got.String(), tt.want)
			}
		})
	}
}

func TestJudgeKeepsEvidence(t *testing.T) {
	spec := Spec{}.WithDefaults()
	r := newRecord(Result{}, time.Unix(1, 0))

	r.judge(evidence{at: time.Unix(2, 0), latency: 3 * time.Millisecond}, spec)
	want := Result{State: Up, Since: time.Unix(2, 0), Answered: true, Latency: 3 * time.Millisecond, Checked: time.Unix(2, 0)}
	if got := r.result(); got != want {
		t.Errorf("after a success: got %+v; want %+v", got, want)
	}

	long := strings.Repeat("x", MaxError-1) + "é"
	r.judge(evidence{at: time.Unix(3, 0), failure: &Failure{Reason: Timeout, Text: long}}, spec)
	r.judge(evidence{at: time.Unix(4, 0), failure: &Failure{Reason: Timeout, Text: long}}, spec)
	want = Result{
		State: Up, Since: time.Unix(2, 0), Answered: true, Latency: 3 * time.Millisecond, Checked: time.Unix(4, 0),
		Reason: Timeout, Error: strings.Repeat("x", MaxError-1), Failures: 2,
	}
	if got := r.result(); got != want {
		t.Errorf("after two failures: got %+v; want %+v", got, want)
	}

	again := newRecord(r.result(), time.Unix(9, 0))
	if got := again.result(); got != want {
		t.Errorf("seeded with its own result: got %+v; want %+v", got, want)
	}
	if again.pending() {
		t.Error("a seed has brought failures towards a verdict with it")
	}
}

func TestEqualFailuresShareMemory(t *testing.T) {
	spec := Spec{}.WithDefaults()
	r := newRecord(Result{}, time.Unix(1, 0))
	r.judge(evidence{failure: &Failure{Reason: Refused, Text: "connection refused"}}, spec)
	kept := r.failure
	r.judge(evidence{failure: &Failure{Reason: Refused, Text: "connection refused"}}, spec)
	if r.failure != kept {
		t.Error("an equal failure was kept beside the first")
	}
}
