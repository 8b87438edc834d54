package nftables

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// steerInterval is how often the engine looks whether its ip rules and routes are
	// there, and settings of links; the kernel deletes routes whenever a link goes down.
	steerInterval = time.Second
	// steerAgain is the same while something is wrong.
	steerAgain = 200 * time.Millisecond
)

// steer makes the ways to members that are not there yet. What it cannot make is the
// trouble of these members only. Callers hold mu.
func (e *Engine) steer() {
	d := &e.direct
	gateways := d.gateways()
	if d.steering.has(gateways) && !d.trouble.any() {
		return
	}
	d.active = d.active || len(gateways) > 0
	d.trouble = d.steering.add(gateways, e.keepSettings, e.log)
	e.tellTrouble(d.trouble)
}

// tellTrouble logs what is wrong on the way to members that are served. The others are
// refused with it.
func (e *Engine) tellTrouble(t trouble) {
	all := slices.Compact(slices.Sorted(slices.Values(t.passing)))
	if text := strings.Join(all, "; "); text != e.direct.told {
		e.direct.told = text
		if text != "" {
			e.log.Error("packets may not reach some members with forwarding direct; it is tried again", zap.String("reason", text))
		}
	}
}

// unsteer takes away what no packet has the mark of any more. Callers hold mu.
func (e *Engine) unsteer() {
	d := &e.direct
	if len(d.groups) == 0 && !e.state.shape.steers() {
		clear(d.numbers) // and with the rules for them no packet gets one
		clear(d.leaving)
		clear(d.links)
		clear(d.lost)
	}
	if !d.active && len(d.numbers) == 0 {
		return
	}
	keep := make(map[mark]bool, len(d.numbers))
	for _, m := range d.numbers {
		keep[m] = true
	}
	if d.kept != nil && maps.Equal(d.kept, keep) {
		return
	}
	if _, err := d.steering.prune(keep, false); err != nil {
		d.kept = nil
		if text := err.Error(); text != d.left {
			d.left = text
			e.log.Error("ip rules, routes or settings of links of members that are gone are left; it is tried again", zap.Error(err))
		}
		return
	}
	d.kept, d.active, d.left = keep, len(keep) > 0, ""
}

// watchSteering repairs what others, or the kernel, have taken away on the way to
// members. It holds mu only to change something.
func (e *Engine) watchSteering(now time.Time) {
	d := &e.direct
	e.mu.Lock()
	interval := steerInterval
	if d.told != "" {
		interval = steerAgain
	}
	if e.idle() || now.Sub(d.checked) < interval || !d.active && len(d.numbers) == 0 {
		e.mu.Unlock()
		return
	}
	d.checked = now
	// Those that were never reached are tried with the next Set.
	gateways := slices.DeleteFunc(d.gateways(), func(g gateway) bool { return d.steering.done[g.mark].addr != g.addr })
	keep := e.keepSettings
	addrs := make(map[netip.Addr]bool, len(d.numbers))
	for a := range d.numbers {
		addrs[a] = true
	}
	e.mu.Unlock()

	links := d.watch.links(addrs)
	wrong, obstacles, err := d.watch.survey(gateways, keep)

	e.mu.Lock()
	defer e.mu.Unlock()
	if e.idle() {
		return
	}
	if err != nil {
		e.tellTrouble(trouble{passing: []string{err.Error()}})
		return
	}
	needless := len(d.groups) == 0 && !e.state.shape.steers()
	if needless || d.kept == nil {
		e.unsteer()
	}
	if needless {
		return
	}
	for a := range links {
		if d.numbers[a] == 0 {
			delete(links, a) // it was taken back meanwhile
		}
	}
	changed := d.found(links, now)
	for m := range wrong {
		d.steering.broken[m] = true
	}
	for _, v := range versions {
		changed = changed || len(of(v, gateways)) > 0 && obstacles[v] != d.trouble.obstacles[v]
	}
	changed = changed || len(d.trouble.passing) > 0 && len(obstacles) == 0
	if len(wrong) > 0 || changed {
		e.resteer(len(wrong))
		return
	}
	e.tellTrouble(d.trouble) // what was in the way of looking is over
}

// resteer makes the ways anew that are broken.
func (e *Engine) resteer(broken int) {
	d := &e.direct
	before := d.told
	t := d.steering.add(d.gateways(), e.keepSettings, e.log)
	e.tellTrouble(t)
	d.trouble.obstacles, d.trouble.passing = t.obstacles, t.passing
	if broken > 0 && before == "" && !t.any() {
		e.log.Warn("ip rules, routes or settings of links for forwarding direct were gone, or rules of others had come before them; they are restored", zap.Int("nodes", broken))
	}
	if settings := d.steering.settings.elements(); e.state.shape.steers() && !maps.Equal(settings, e.state.settings) {
		next := *e.state
		next.settings = settings
		e.state, e.inForce = &next, false
	}
}

// learn takes over the numbers that a process before has given, and what it has
// changed.
func (d *direct) learn(s *socket) error {
	d.numbers, d.leaving = make(map[netip.Addr]mark), make(map[netip.Addr]time.Time)
	d.links, d.lost = make(map[netip.Addr]link), make(map[netip.Addr]time.Time)
	d.trouble, d.kept = trouble{}, nil
	d.active = true // there may be rules
	for _, v := range versions {
		if err := s.read("gateways"+v.suffix, func(f found) {
			if a, ok := netip.AddrFromSlice([]byte(f.key)); ok && hostMark([]byte(f.data)).kind() == ofGateway {
				d.numbers[a] = hostMark([]byte(f.data))
			}
		}); err != nil {
			return err
		}
	}
	var err error
	if d.steering.settings, err = s.readSettings(); err != nil {
		return err
	}
	// The keeper's socket belongs to this network namespace too, whatever its thread is in.
	_ = d.watch.open()
	// The dead are not among the gateways, and have their rules.
	members, err := d.steering.learn()
	d.recall(members, err == nil)
	return nil
}

// recall notes who was served by the process before: what is in the way of that may
// pass. Unless it is known, all with a number were; whoever needs routing that does not
// work is told when it is needed.
func (d *direct) recall(members map[mark]gateway, known bool) {
	d.steering.forget()
	taken := make(map[mark]bool)
	for _, m := range d.numbers {
		taken[m] = true
	}
	for m, g := range members {
		if g.addr.IsValid() && d.numbers[g.addr] == 0 && !taken[m] {
			d.numbers[g.addr] = m
		}
	}
	for a, m := range d.numbers {
		g, ruled := members[m]
		if known && !ruled || g.addr.IsValid() && g.addr != a {
			continue
		}
		// Without the link, so that all is made that may be missing.
		d.steering.done[m] = gateway{addr: a, mark: m}
		if g.link.index != 0 {
			d.links[a] = g.link
		}
	}
}

// versionOfFamily returns what differs between the families.
func versionOfFamily(f lb.Family) *version {
	if f == lb.IPv6 {
		return v6
	}
	return v4
}

// checkSteering tells whether packets could be routed to members as they are.
func checkSteering() []Item {
	var s steering
	defer s.close()
	if err := s.open(); err != nil {
		return []Item{{Name: "forwarding direct", Doubtful: true, Detail: err.Error()}}
	}
	var items []Item
	for _, v := range versions {
		i := Item{Name: "forwarding direct of " + string(v.family), Detail: fmt.Sprintf("ip rules take packets for nodes past those of others, to the priorities %d and %d, while a load balancer needs them", memberPriority, lostPriority)}
		present, err := s.rules(v)
		switch {
		case noFamily(err):
			continue
		case err != nil:
			i.Doubtful, i.Detail = true, err.Error()
		case present.obstacle() != "":
			i.Doubtful, i.Detail = true, "is refused: "+present.obstacle()
		}
		items = append(items, i)
	}
	return items
}
