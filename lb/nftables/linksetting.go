package nftables

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// linkSetting is a setting of a link without which answers of members are dropped
// that come back through this machine: their source is an address of its own.
type linkSetting struct {
	name, want string
	right      func(have string) bool
}

var linkSettingsWanted = []linkSetting{
	{"accept_local", "1", func(have string) bool { return have == "1" }},
	// 2 is below 1, and what counts is the larger one of the link's and of all.
	{"rp_filter", "2", func(have string) bool { return have == "2" || have == "0" && allUnfiltered() }},
}

// allUnfiltered tells whether the setting of all links filters nothing.
func allUnfiltered() bool {
	have, err := readLinkSetting("all", "rp_filter")
	return err == nil && have == "0"
}

func linkSettingPath(link, name string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", link, name)
}

func readLinkSetting(link, name string) (string, error) {
	b, err := os.ReadFile(linkSettingPath(link, name))
	return strings.TrimSpace(string(b)), err
}

// rightSettings tells whether all of a link are right, or it is gone.
func rightSettings(link string) bool {
	for _, w := range linkSettingsWanted {
		if have, err := readLinkSetting(link, w.name); err == nil && !w.right(have) {
			return false
		}
	}
	return true
}

// prepare lets answers of members come in on a link.
func (s *steering) prepare(link string, keep bool, log *zap.Logger) error {
	for _, w := range linkSettingsWanted {
		path := linkSettingPath(link, w.name)
		have, err := readLinkSetting(link, w.name)
		switch {
		case errors.Is(err, os.ErrNotExist):
			continue
		case err != nil:
			return fmt.Errorf("setting of the link %s: %w", link, err)
		case w.right(have):
			continue
		case keep:
			if !s.warned[path] {
				log.Warn("a setting of a link is not as it should be, and is left alone: answers of nodes that come back through this machine are dropped", zap.String("setting", path), zap.String("is", have), zap.String("want", w.want))
			}
			s.warned[path] = true
			continue
		}
		if err := os.WriteFile(path, []byte(w.want), 0o644); err != nil { //nolint:gosec // a file of the kernel
			return fmt.Errorf("setting %s is %q and must be %q, since answers of nodes that come back through this machine are dropped otherwise: %w", path, have, w.want, err)
		}
		if s.settings == nil {
			s.settings = make(linkSettings)
		}
		s.settings.remember(link, w.name, have)
		log.Info("changed a setting of a link, so that answers of nodes may come back through this machine", zap.String("setting", path), zap.String("was", have), zap.String("is", w.want))
	}
	return nil
}

// linkSettings are what the engine has changed, as it was before: by link and name.
type linkSettings map[string]map[string]string

func (l linkSettings) remember(link, name, was string) {
	if l[link] == nil {
		l[link] = make(map[string]string)
	}
	l[link][name] = was
}

// restore puts back what nobody else has changed since, and forgets it.
func (l linkSettings) restore() error {
	var errs []error
	for _, link := range slices.Sorted(maps.Keys(l)) {
		for _, w := range linkSettingsWanted {
			was, changed := l[link][w.name]
			have, err := readLinkSetting(link, w.name)
			if !changed || err != nil || have != w.want {
				continue
			}
			if err := os.WriteFile(linkSettingPath(link, w.name), []byte(was), 0o644); err != nil { //nolint:gosec // a file of the kernel
				errs = append(errs, fmt.Errorf("put back the setting of the link %s: %w", link, err))
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	clear(l)
	return nil
}

// The table has them too, so that the next process knows, and [Cleanup].
const settingsSet = "link_settings"

func settingsSetOf() *set {
	const typeName = 41
	return &set{name: settingsSet, keyType: typeName, keyLen: unix.IFNAMSIZ, userData: byteOrders(hostOrder, anyOrder)}
}

// elements are the table's: a link, and a comment such as "accept_local=0 rp_filter=1".
func (l linkSettings) elements() map[string]element {
	all := make(map[string]element, len(l))
	for link, was := range l {
		var b strings.Builder
		for i, name := range slices.Sorted(maps.Keys(was)) {
			if i > 0 {
				b.WriteByte(' ')
			}
			b.WriteString(name + "=" + was[name])
		}
		key := make([]byte, unix.IFNAMSIZ)
		copy(key, link)
		all[link] = element{settingsSet, string(key), value{comment: b.String()}}
	}
	return all
}

// readSettings reads them from the table.
func (s *socket) readSettings() (linkSettings, error) {
	l := make(linkSettings)
	err := s.read(settingsSet, func(f found) {
		for _, field := range strings.Fields(f.comment) {
			if name, was, ok := strings.Cut(field, "="); ok {
				l.remember(text([]byte(f.key)), name, was)
			}
		}
	})
	return l, err
}

// setSettings has the table remember what was changed.
func (p *plan) setSettings() {
	if !p.next.shape.steers() {
		return
	}
	p.next.settings = p.e.direct.steering.settings.elements()
	was := p.was.settings
	for link, before := range was {
		if p.next.settings[link] != before {
			p.deleted[settingsSet] = append(p.deleted[settingsSet], before)
		}
	}
	for link, after := range p.next.settings {
		if was[link] != after {
			p.added[settingsSet] = append(p.added[settingsSet], after)
		}
	}
}
