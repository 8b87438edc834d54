// Package report is what eclusa tells people about the fleet, about one Service
// and about what a change would do: the answers as they cross the network, what
// to do about each kind of trouble, and the handler that serves the answers.
//
// The leader makes them from what it knows; kubectl-eclusa prints them, and makes
// poorer ones by itself from the objects in the cluster when it cannot ask.
package report

import (
	"cmp"
	"slices"
	"time"
)

// Level says how bad something is.
type Level string

// The levels, the worst first.
const (
	// Problem is something that hurts users now.
	Problem Level = "problem"
	// Notice is something to know or to look at, while traffic is served.
	Notice Level = "notice"
	// OK is nothing.
	OK Level = "ok"
)

// rank orders levels, the worst first.
func (l Level) rank() int {
	switch l {
	case Problem:
		return 0
	case Notice:
		return 1
	default:
		return 2
	}
}

// Compare orders the worse level first.
func (l Level) Compare(o Level) int { return cmp.Compare(l.rank(), o.rank()) }

// Finding is one thing that is not as it should be.
type Finding struct {
	Level Level `json:"level"`
	// Where it is, such as "edge edge-1", "node n2" or the type of a Condition.
	Where string `json:"where,omitempty"`
	// Reason is the fixed name of this kind of trouble.
	Reason string `json:"reason,omitempty"`
	// What is wrong, as a sentence.
	What string `json:"what"`
	// Since is when it began, nil if that is not known.
	Since *time.Time `json:"since,omitempty"`
	// Do is what to do about it, empty if there is nothing to do.
	Do string `json:"do,omitempty"`
}

// OfCondition returns what a condition of a Service tells of trouble, and false if
// it tells of none. Status and reason are as in Kubernetes. What is not known is
// trouble: of a Service whose edges are all lost nobody can say that it is served.
func OfCondition(conditionType, status, reason, message string, since *time.Time) (Finding, bool) {
	level := OK
	switch {
	case status == "False", reason == "EdgeUnreachable":
		level = Problem
	case reason == "NotMeasured":
		// Nobody outside has tried, which is how it is meant to be.
	case status != "True":
		level = Notice
	case reason == "AssignedPartly" || reason == "PoolGone" || reason == "Degraded" || reason == "PortsNotServed" || reason == "AnnotationsIgnored":
		level = Notice
	}
	return Finding{
		Level: level, Where: conditionType, Reason: reason, What: message, Since: since, Do: Advice(reason),
	}, level != OK
}

// Worst returns the worst level of findings, OK if there are none.
func Worst(findings []Finding) Level {
	worst := OK
	for _, f := range findings {
		if f.Level.Compare(worst) < 0 {
			worst = f.Level
		}
	}
	return worst
}

// Sort orders findings, the worst first, equally bad ones as they are.
func Sort(findings []Finding) {
	slices.SortStableFunc(findings, func(a, b Finding) int { return a.Level.Compare(b.Level) })
}

// At returns a pointer to a time, and nil for the zero time.
func At(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// Origin says who made a report.
type Origin struct {
	// Leader is the identity of the leader that made the report, empty if it was
	// made from the objects in the cluster alone.
	Leader string `json:"leader,omitempty"`
	// Version is the leader's version.
	Version string `json:"version,omitempty"`
	// Time is when what the report says was so.
	Time time.Time `json:"time"`
	// Remark says why there is less in the report than there could be.
	Remark string `json:"remark,omitempty"`
}
