// Package link announces addresses by adding them to a network interface: each as
// a single address (/32 or /128) that the machine answers for, but does not use
// as the source of its own connections. Neighbours are told of a new address at
// once (gratuitous ARP, unsolicited neighbour advertisement).
//
// Addresses stay when the program ends, so that a restart is not noticed; they
// go when Set no longer names them, or by [Announcer.Withdraw]. Only addresses
// that an Announcer added are ever removed. It knows them by a record in a file
// and, on kernels that keep it (5.18 and later), by a mark on the address.
//
// One interface belongs to one Announcer at a time.
package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"
)

// Options configure an Announcer. All are required.
type Options struct {
	// Interface is the name of the network interface.
	Interface string
	// StateFile is where the Announcer records what it has added.
	StateFile string
	Log       *zap.Logger
}

// Announcer adds addresses to an interface. Its methods may be called
// concurrently.
type Announcer struct {
	o Options

	mu    sync.Mutex
	owned map[owned]bool
	// saved tells whether the record on the disk is that of owned.
	saved bool
}

// owned is an address that was added to an interface. The interface was another
// one when the configuration has changed since.
type owned struct {
	link string
	addr netip.Addr
}

// record is the file: addresses by interface.
type record map[string][]netip.Addr

// Error tells which addresses could not be added or removed.
type Error struct {
	Interface string
	failed    map[netip.Addr]error
}

// Error names the first addresses and their reasons.
func (e *Error) Error() string {
	const shown = 3
	var texts []string
	for a, err := range e.failed {
		texts = append(texts, fmt.Sprintf("%s: %v", a, err))
	}
	slices.Sort(texts)
	more := ""
	if len(texts) > shown {
		more = fmt.Sprintf(" and %d more", len(texts)-shown)
		texts = texts[:shown]
	}
	return fmt.Sprintf("interface %q: %s%s", e.Interface, strings.Join(texts, "; "), more)
}

// FailedAddresses returns the reason for each address.
func (e *Error) FailedAddresses() map[netip.Addr]error { return e.failed }

// New returns an Announcer that knows what was added before. It changes nothing
// yet. The interface must exist.
func New(o Options) (*Announcer, error) {
	a := &Announcer{o: o, owned: make(map[owned]bool)}
	if err := a.load(); err != nil {
		// The marks are a second record.
		o.Log.Warn("the record of announced addresses cannot be read", zap.Error(err))
	}
	c, err := dial()
	if err != nil {
		return nil, err
	}
	defer c.close()
	if _, err := c.link(o.Interface); err != nil {
		return nil, err
	}
	present, err := c.addresses()
	if err != nil {
		return nil, err
	}
	a.recall(present)
	return a, nil
}

// recall forgets what is no longer there and remembers what bears the mark.
func (a *Announcer) recall(present map[owned]attributes) {
	for o := range a.owned {
		if _, ok := present[o]; !ok {
			delete(a.owned, o)
			a.saved = false
		}
	}
	for o, attributes := range present {
		if o.link == a.o.Interface && attributes.marked && !a.owned[o] {
			a.owned[o] = true
			a.saved = false
		}
	}
}

// Held returns the addresses that are there because of an Announcer.
func (a *Announcer) Held() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	addrs := make([]netip.Addr, 0, len(a.owned))
	for o := range a.owned {
		addrs = append(addrs, o.addr)
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// Set replaces the set of addresses. Those that are missing on the interface are
// added, also when somebody else has removed them; those that an Announcer added
// and that are not in the set are removed. Addresses that are there anyway are
// left alone. It goes on after an error with one address; those are in the
// *Error.
func (a *Announcer) Set(ctx context.Context, addrs []netip.Addr) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	c, err := dial()
	if err != nil {
		return err
	}
	defer c.close()
	link, err := c.link(a.o.Interface)
	if err != nil {
		return err
	}
	present, err := c.addresses()
	if err != nil {
		return err
	}
	a.recall(present)
	wanted := make(map[owned]bool, len(addrs))
	var missing []owned
	for _, addr := range addrs {
		o := owned{a.o.Interface, addr.Unmap()}
		if wanted[o] {
			continue
		}
		wanted[o] = true
		if _, ok := present[o]; !ok {
			missing = append(missing, o)
		}
	}
	failed := make(map[netip.Addr]error)
	a.add(ctx, c, link, missing, failed)
	a.remove(ctx, c, wanted, failed)
	if !a.saved {
		a.save()
	}
	if len(failed) > 0 {
		return &Error{Interface: a.o.Interface, failed: failed}
	}
	return ctx.Err()
}

// add adds addresses and tells the neighbours.
func (a *Announcer) add(ctx context.Context, c *conn, l link, missing []owned, failed map[netip.Addr]error) {
	if len(missing) == 0 {
		return
	}
	// Recorded before it is done: after a crash too few addresses may be there
	// that the record has, but never one that it has not.
	for _, o := range missing {
		a.owned[o] = true
	}
	a.save()
	var added []netip.Addr
	for _, o := range missing {
		err := ctx.Err()
		if err == nil {
			err = c.add(l, o.addr)
		}
		if err != nil {
			failed[o.addr] = err
			delete(a.owned, o)
			a.saved = false
			continue
		}
		added = append(added, o.addr)
	}
	if len(added) == 0 {
		return
	}
	a.o.Log.Info("addresses were added to the interface", zap.String("interface", a.o.Interface), zap.Int("added", len(added)), zap.Stringers("first", added[:min(5, len(added))]))
	if err := tellNeighbours(l, added); err != nil {
		a.o.Log.Warn("neighbours were not told of new addresses; they find them when their own entries expire", zap.String("interface", a.o.Interface), zap.Error(err))
	}
}

// remove removes what is owned and not wanted.
func (a *Announcer) remove(ctx context.Context, c *conn, wanted map[owned]bool, failed map[netip.Addr]error) {
	removed := 0
	for o := range a.owned {
		if wanted[o] {
			continue
		}
		err := ctx.Err()
		if err == nil {
			err = c.remove(o)
		}
		if err != nil {
			failed[o.addr] = fmt.Errorf("remove: %w", err)
			continue
		}
		delete(a.owned, o)
		a.saved = false
		removed++
	}
	if removed > 0 {
		a.o.Log.Info("addresses were removed from the interface", zap.String("interface", a.o.Interface), zap.Int("removed", removed))
	}
}

// Withdraw removes every address that an Announcer has added.
func (a *Announcer) Withdraw(ctx context.Context) error { return a.Set(ctx, nil) }

func (a *Announcer) load() error {
	data, err := os.ReadFile(a.o.StateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	owned, err := decodeRecord(data)
	if err != nil {
		return fmt.Errorf("%s: %w", a.o.StateFile, err)
	}
	a.owned, a.saved = owned, true
	return nil
}

func decodeRecord(data []byte) (map[owned]bool, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, err
	}
	all := make(map[owned]bool)
	for link, addrs := range r {
		for _, addr := range addrs {
			if !addr.IsValid() {
				return nil, fmt.Errorf("interface %q: an address is empty", link)
			}
			all[owned{link, addr}] = true
		}
	}
	return all, nil
}

// save records what is owned. Addresses do not survive the machine, so the
// record need not survive more than the program.
func (a *Announcer) save() {
	r := make(record)
	for o := range a.owned {
		r[o.link] = append(r[o.link], o.addr)
	}
	for _, addrs := range r {
		slices.SortFunc(addrs, netip.Addr.Compare)
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(a.o.StateFile), 0o700)
	}
	if err == nil {
		err = os.WriteFile(a.o.StateFile+".new", data, 0o600)
	}
	if err == nil {
		err = os.Rename(a.o.StateFile+".new", a.o.StateFile)
	}
	a.saved = err == nil
	if err != nil {
		a.o.Log.Warn("the record of announced addresses cannot be saved; only their marks tell whose they are", zap.Error(err))
	}
}
