package edge

import (
	"maps"
	"net/netip"
	"sync"
	"time"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// deadAfter is how many further failures make a member dead that is down.
	deadAfter = 3
	// LastResortFor is how long a member that asks for no new connections may get some
	// when there is nobody else: the time that pods have to end unless they say
	// otherwise.
	LastResortFor = 30 * time.Second
)

// memberKey is a node in a check: what health is known of.
type memberKey struct {
	cluster lb.Cluster
	check   lb.HealthCheck // with its defaults
	node    lb.NodeName
}

// A probed member is asked at its target. While it is down there, a TCP
// connection to a node port, the witness, is tried as well: it stands in for a
// check that has never answered, and tells a node that is dead from one whose
// checked port alone is closed.
type probed struct {
	id lb.CheckID
	// unchecked says that nobody asks, and that there is no target.
	unchecked bool
	target    healthcheck.Target
	witness   healthcheck.Target // the zero Target if there is none
	// direct says that packets are routed there whatever the node's ports are.
	direct bool
}

// plan is whom to probe, for whom. It is immutable.
type plan map[memberKey]probed

// newPlan works out the targets of the checks that Compile found in use.
func newPlan(checks map[lb.Cluster]map[lb.CheckID]lb.Check) plan {
	p := make(plan)
	for cluster, byID := range checks {
		for id, check := range byID {
			for node, addr := range check.Members {
				if check.HealthCheck.Protocol == healthcheck.None {
					p[memberKey{cluster, check.HealthCheck, node}] = probed{id: id, unchecked: true}
					continue
				}
				m := probed{id: id, direct: check.Direct[node], target: healthcheck.Target{
					Addr: netip.AddrPortFrom(addr, check.HealthCheck.Port), Spec: check.HealthCheck.Spec,
				}}
				if port, ok := check.Substitute[node]; ok {
					m.witness = witness(addr, port, check.HealthCheck.Spec)
				}
				if m.witness == m.target {
					m.witness = healthcheck.Target{}
				}
				p[memberKey{cluster, check.HealthCheck, node}] = m
			}
		}
	}
	return p
}

// witness is the TCP target beside a check: as often and as patiently as the
// check itself, but never quicker to condemn.
func witness(addr netip.Addr, port uint16, s healthcheck.Spec) healthcheck.Target {
	s.Protocol, s.Path = healthcheck.TCP, ""
	s.UnhealthyThreshold = max(s.UnhealthyThreshold, deadAfter)
	return healthcheck.Target{Addr: netip.AddrPortFrom(addr, port), Spec: s}
}

// verdict is what is known of a member, from its target and its witness.
type verdict struct {
	lb.MemberHealth
	status lb.MemberStatus
	// witnessed says that the witness has to be asked.
	witnessed bool
	// pending says that failures are counted towards Dead, which no change of a
	// state will tell, endsAt when Ending is over, which none tells either.
	pending bool
	endsAt  time.Time
}

// results tells what a Checker knows about a target.
type results func(healthcheck.Target) (healthcheck.Result, bool)

// judge puts together what is known of a member. silent is when a connection to it
// was last found to get no answer.
func (m probed) judge(known results, silent, now time.Time) verdict {
	r, _ := known(m.target)
	v := verdict{MemberHealth: lb.MemberHealth{State: r.State}, status: statusOf(r)}
	if r.State == healthcheck.Draining {
		v.endsAt = r.Since.Add(LastResortFor)
		v.Ending = now.Before(v.endsAt) && silent.Before(r.Since)
	}
	if r.State != healthcheck.Down {
		return v
	}
	v.witnessed = m.witness.Addr.IsValid()
	if !v.witnessed {
		if m.direct && r.Reason == healthcheck.Refused {
			return v // the machine is there: kube-proxy is restarted, and its rules go on
		}
		v.Dead = r.Failures >= m.target.Spec.UnhealthyThreshold+deadAfter
		v.pending = !v.Dead
		v.status.Dead = v.Dead
		return v
	}
	w, _ := known(m.witness)
	if m.stoodIn(r) && w.Answered {
		// From now on the witness is the check, and has no witness itself.
		v.State = w.State
		v.Dead = w.State == healthcheck.Down && w.Failures >= m.witness.Spec.UnhealthyThreshold+deadAfter
		v.pending = w.State == healthcheck.Down && !v.Dead
		v.status = statusOf(w)
		v.status.Substitute = true
	} else {
		v.Dead = w.State == healthcheck.Down
	}
	v.status.Dead = v.Dead
	return v
}

// stoodIn tells whether the witness may stand in for the check: nothing has ever
// answered there. An answer that is wrong is an answer.
func (m probed) stoodIn(r healthcheck.Result) bool {
	if r.Answered {
		return false
	}
	switch r.Reason {
	case healthcheck.Refused, healthcheck.Timeout, healthcheck.Unreachable, healthcheck.Reset:
		return true
	case healthcheck.HTTPStatus, healthcheck.ProtocolErr, healthcheck.TLSErr, healthcheck.GRPCStatus:
	}
	return false
}

// statusOf says what a result is to a reader of the status.
func statusOf(r healthcheck.Result) lb.MemberStatus {
	s := lb.MemberStatus{State: r.State, Since: r.Since}
	if r.State != healthcheck.Up {
		s.Reason, s.Error = r.Reason, r.Error
	}
	return s
}

// survey is what is known about everyone in a plan at one moment.
type survey struct {
	health  map[memberKey]lb.MemberHealth // of those who are checked
	status  map[lb.Cluster]map[lb.CheckID]map[lb.NodeName]lb.MemberStatus
	targets map[healthcheck.Target]healthcheck.Result // to be probed; the value seeds a new one
	pending bool
	endsAt  time.Time // when the first member stops Ending, zero if none is
}

// survey asks about everyone in the plan. Witnesses that are needed from now on
// start from what was known about the witness before, if seeds knows one. silent are
// those who did not answer connections, and when.
func (p plan) survey(known results, seeds map[healthcheck.Target]healthcheck.Result, silent map[hint]time.Time) survey {
	now := time.Now()
	s := survey{
		health:  make(map[memberKey]lb.MemberHealth, len(p)),
		status:  make(map[lb.Cluster]map[lb.CheckID]map[lb.NodeName]lb.MemberStatus),
		targets: make(map[healthcheck.Target]healthcheck.Result, len(p)),
	}
	for key, m := range p {
		if m.unchecked {
			s.tell(key, m.id, lb.MemberStatus{State: healthcheck.Unchecked, Since: time.Now()})
			continue
		}
		v := m.judge(known, silent[hint{key.cluster, m.id, key.node}], now)
		s.health[key] = v.MemberHealth
		s.targets[m.target] = seeds[m.target]
		if v.witnessed {
			s.targets[m.witness] = seeds[m.witness]
		}
		s.pending = s.pending || v.pending
		if v.Ending && (s.endsAt.IsZero() || v.endsAt.Before(s.endsAt)) {
			s.endsAt = v.endsAt
		}
		s.tell(key, m.id, v.status)
	}
	return s
}

// tell notes the status of a member.
func (s *survey) tell(key memberKey, id lb.CheckID, status lb.MemberStatus) {
	checks := s.status[key.cluster]
	if checks == nil {
		checks = make(map[lb.CheckID]map[lb.NodeName]lb.MemberStatus)
		s.status[key.cluster] = checks
	}
	if checks[id] == nil {
		checks[id] = make(map[lb.NodeName]lb.MemberStatus)
	}
	checks[id][key.node] = status
}

// movedWitnesses returns seeds for the witnesses of next that stand at another
// port than in p, so that a member whose check a witness stands in for does not
// become unknown when a Service goes.
func (p plan) movedWitnesses(next plan, known results) map[healthcheck.Target]healthcheck.Result {
	seeds := make(map[healthcheck.Target]healthcheck.Result)
	for key, m := range next {
		old, ok := p[key]
		if !ok || old.witness == m.witness || !old.witness.Addr.IsValid() || !m.witness.Addr.IsValid() {
			continue
		}
		if r, ok := known(old.witness); ok {
			seeds[m.witness] = r
		}
	}
	return seeds
}

// A hint names a member as engines know it.
type hint struct {
	cluster lb.Cluster
	check   lb.CheckID
	node    lb.NodeName
}

// newHints returns where the members of a plan are probed.
func newHints(p plan) *map[hint]healthcheck.Target {
	hints := make(map[hint]healthcheck.Target, len(p))
	for key, m := range p {
		if m.unchecked {
			continue
		}
		hints[hint{key.cluster, m.id, key.node}] = m.target
	}
	return &hints
}

// silence knows who did not answer a connection while they asked for no new ones.
type silence struct {
	mu sync.Mutex
	at map[hint]time.Time
}

// note reports whether it is news.
func (s *silence) note(h hint, since, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.at[h].Before(since) {
		return false
	}
	if s.at == nil {
		s.at = make(map[hint]time.Time)
	}
	s.at[h] = now
	return true
}

// recent returns what was noted, and forgets what is too old to matter.
func (s *silence) recent(now time.Time) map[hint]time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.at, func(_ hint, at time.Time) bool { return now.Sub(at) > LastResortFor })
	return maps.Clone(s.at)
}
