package edge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/healthcheck"
	"github.com/eclusa-lb/eclusa/lb"
)

// loop is what the one goroutine that decides knows. Nobody else touches it.
type loop struct {
	*Edge
	saver  *saver
	own    []netip.Addr // the machine's addresses
	seeds  map[healthcheck.Target]healthcheck.Result
	plan   plan
	health map[memberKey]lb.MemberHealth // what the table was compiled with
	held   map[lb.Cluster]*held          // what the table was compiled from
	out    lb.Outcome
	odd    map[lb.Owner]lb.LoadBalancerStatus // those that were left out

	banned map[lb.Cluster]map[lb.CheckID]map[lb.NodeName]lb.MemberStatus // nodes that must not be used

	refused  map[lb.Frontend]error
	lessened map[lb.Frontend]*lb.MembersError // served, though not by all members
	announcing
	trouble bool      // something has to be tried again soon
	pending bool      // a member may be found dead without any change
	endsAt  time.Time // when the first last resort is over, zero if there is none

	first         sync.Once
	healthChanged bool // since healthSaved
	healthSaved   time.Time
	told          map[memberKey]healthcheck.State // in the log
}

// known tells what is known of a target: what was measured, or what was saved.
func (l *loop) known(t healthcheck.Target) (healthcheck.Result, bool) {
	if r, ok := l.checker.Result(t); ok {
		return r, true
	}
	r, ok := l.seeds[t]
	return r, ok
}

// work brings traffic and status to the newest state. With force it does so even
// if nothing seems to have changed, which repairs what others have changed.
func (l *loop) work(ctx context.Context, force bool) {
	start := time.Now()
	held := l.snapshot()
	s := l.survey()
	if !force && maps.Equal(held, l.held) && maps.Equal(s.health, l.health) {
		l.follow(s)
		l.release(ctx)
		return
	}
	l.compile(held, s)
	l.apply(ctx, force)
	l.tell()
	l.stats.applied(time.Since(start))
}

func (l *loop) survey() survey { return l.plan.survey(l.known, l.seeds, l.silence.recent(time.Now())) }

func (l *loop) snapshot() map[lb.Cluster]*held {
	held := make(map[lb.Cluster]*held, len(l.clusters))
	for name, c := range l.clusters {
		held[name] = c.held.Load()
	}
	return held
}

// compile works out the table. Members that a new configuration brings may be
// known already from other checks of the same target; then a second run knows
// them too. What has to be probed does not depend on health, so two are enough.
func (l *loop) compile(held map[lb.Cluster]*held, s survey) {
	in := lb.Input{Host: l.host(), Policies: l.policies, Configs: make(map[lb.Cluster]lb.Config, len(held))}
	l.odd = make(map[lb.Owner]lb.LoadBalancerStatus)
	for name, h := range held {
		config, odd := h.servable()
		in.Configs[name] = config
		for uid, status := range odd {
			l.odd[lb.Owner{Cluster: name, UID: uid}] = status
		}
	}
	agreed := false
	for range 2 {
		health := s.health
		in.Health = func(c lb.Cluster, check lb.HealthCheck, node lb.NodeName) lb.MemberHealth {
			return health[memberKey{c, check, node}]
		}
		l.out = lb.Compile(in)
		next := newPlan(l.out.Checks)
		maps.Copy(l.seeds, l.plan.movedWitnesses(next, l.known))
		l.plan = next
		l.hints.Store(newHints(next))
		s = l.survey()
		if agreed = agree(s.health, health); agreed {
			break
		}
	}
	l.held, l.health = held, s.health
	l.ban(in.Configs)
	if !agreed { // probes were faster than we are
		l.health = nil
		l.kick()
	}
	l.follow(s)
}

// agree tells whether a table compiled with assumed health is right for health.
func agree(health, assumed map[memberKey]lb.MemberHealth) bool {
	for key, h := range health {
		if assumed[key] != h {
			return false
		}
	}
	return true
}

// follow probes whom the survey says and tells what it found.
func (l *loop) follow(s survey) {
	l.checker.Set(s.targets)
	clear(l.seeds) // the checker has them now, and knows better from here on
	l.pending, l.endsAt = s.pending, s.endsAt
	for name, c := range l.clusters {
		members := s.status[name]
		if banned := l.banned[name]; len(banned) > 0 {
			members = withBanned(members, banned)
		}
		c.status.setMembers(members)
	}
	l.logHealth(s)
}

func (l *loop) host() lb.Host {
	return lb.Host{
		Capabilities: l.info.Capabilities, OwnAddresses: l.own,
		ShareOwnAddresses: l.shareHostAddress, Reserved: l.reserved,
	}
}

// apply hands the table to the engine, and then its addresses to the announcer:
// an address that arrives before its listeners would be met with resets.
func (l *loop) apply(ctx context.Context, force bool) {
	ctx, cancel := context.WithTimeout(ctx, l.applyTimeout)
	defer cancel()
	l.trouble = false
	said, err := l.engine.Set(ctx, l.out.Table)
	if err != nil {
		l.trouble = true
		l.stats.engineSaid(len(l.refused), err)
		l.log.Error("the engine does not take the table; what was served before goes on, and it is tried again", zap.Error(err))
		return
	}
	refused, lessened := divide(said)
	l.logRefused(refused)
	l.refused, l.lessened = refused, lessened
	l.trouble = len(refused) > 0
	l.stats.engineSaid(len(refused), nil)
	l.leave()
	l.announce(ctx, force)
	l.ready.Store(true)
}

// divide tells apart, in what an engine says of frontends into those that it refuses and
// those that it serves without some members.
func divide(said map[lb.Frontend]error) (refused map[lb.Frontend]error, lessened map[lb.Frontend]*lb.MembersError) {
	refused, lessened = make(map[lb.Frontend]error), make(map[lb.Frontend]*lb.MembersError)
	for f, err := range said {
		var without *lb.MembersError
		if errors.As(err, &without) {
			lessened[f] = without
		} else {
			refused[f] = err
		}
	}
	return refused, lessened
}

// tell publishes what became of each load balancer.
func (l *loop) tell() {
	if l.stats.engineFailed() {
		return // the table before goes on, and so does what was told of it
	}
	faults := l.faults()
	serving := l.serving(faults)
	remarks := l.remarks()
	for name, c := range l.clusters {
		statuses := make(map[lb.UID]lb.LoadBalancerStatus)
		for uid := range l.held[name].config.LoadBalancers {
			owner := lb.Owner{Cluster: name, UID: uid}
			status := l.statusOf(owner, faults[owner], serving[owner])
			status.Problems = slices.Concat(status.Problems, remarks[owner])
			statuses[uid] = status
		}
		for owner, status := range l.odd {
			if owner.Cluster == name {
				statuses[owner.UID] = status
			}
		}
		l.tellLeaving(name, statuses)
		revision := l.held[name].config.Revision
		if c.status.setLoadBalancers(revision, statuses) {
			c.log.Info("the configuration is in force", zap.Uint64("revision", revision))
		}
		c.logStatuses(statuses)
	}
}

// serving tells which of the load balancers with faults take traffic at any of
// their frontends.
func (l *loop) serving(faults map[lb.Owner][]lb.Problem) map[lb.Owner]bool {
	serving := make(map[lb.Owner]bool, len(faults))
	if len(faults) == 0 {
		return serving
	}
	for f, r := range l.out.Table.Routes {
		if l.refused[f] == nil && l.unheard[f.Addr] == nil {
			serving[r.Owner] = true
		}
	}
	return serving
}

func (l *loop) statusOf(owner lb.Owner, faults []lb.Problem, serving bool) lb.LoadBalancerStatus {
	if odd, ok := l.odd[owner]; ok {
		return odd
	}
	s := l.out.LoadBalancers[owner]
	if len(faults) > 0 {
		s.Applied, s.Partial = false, serving
		s.Problems = append(slices.Clone(s.Problems), faults...)
	}
	return s
}

// faults gathers by load balancer what engine and announcer have refused.
func (l *loop) faults() map[lb.Owner][]lb.Problem {
	faults := make(map[lb.Owner][]lb.Problem)
	for f, err := range l.refused {
		r, ok := l.out.Table.Routes[f]
		if ok {
			faults[r.Owner] = append(faults[r.Owner], lb.Problem{Type: problemType(err), Field: l.listenerField(r.Owner, f), Detail: fmt.Sprintf("%s: %v", f, err)})
		}
	}
	if len(l.unheard) > 0 {
		for f, r := range l.out.Table.Routes {
			if err := l.unheard[f.Addr]; err != nil {
				faults[r.Owner] = append(faults[r.Owner], lb.Problem{Type: problemType(err), Field: "addresses", Detail: fmt.Sprintf("%s: cannot be announced: %v", f.Addr, err)})
			}
		}
	}
	settle(faults)
	return faults
}

// remarks gathers by load balancer what is served less well than it could be. It
// is the same for all listeners.
func (l *loop) remarks() map[lb.Owner][]lb.Problem {
	remarks := make(map[lb.Owner][]lb.Problem)
	for f, err := range l.lessened {
		if r, ok := l.out.Table.Routes[f]; ok {
			remarks[r.Owner] = append(remarks[r.Owner], lb.Problem{Type: "unsupported", Field: "pool", Detail: fmt.Sprintf("%s: %v", f.Addr, err)})
		}
	}
	settle(remarks)
	return remarks
}

// settle puts problems in order, without doubles.
func settle(all map[lb.Owner][]lb.Problem) {
	for owner, problems := range all {
		slices.SortFunc(problems, byDetail)
		all[owner] = slices.Compact(problems)
	}
}

// listenerField names the listener that a frontend comes from.
func (l *loop) listenerField(owner lb.Owner, f lb.Frontend) string {
	for i, li := range l.held[owner.Cluster].config.LoadBalancers[owner.UID].Listeners {
		if li.Port == f.Port && li.Protocol == f.Protocol {
			return fmt.Sprintf("listeners[%d]", i)
		}
	}
	return ""
}
