package nftables

import (
	"bytes"
	"fmt"
	"iter"
	"maps"
	"slices"

	"golang.org/x/sys/unix"
)

// present is what the kernel's table has.
type present struct {
	table    bool
	sets     map[string]*set
	chains   map[string]string // types of base chains, empty for others
	timeouts map[string][]byte // what they are
	digest   string            // of the rules
}

func newPresent() *present {
	return &present{sets: make(map[string]*set), chains: make(map[string]string), timeouts: make(map[string][]byte)}
}

// fits tells whether the sets that are there are those that are wanted. Those of
// another version of the engine may not be.
func (p *present) fits(s *state) bool {
	for _, want := range (&Engine{}).sets(s) {
		if have, ok := p.sets[want.name]; ok && !want.sameAs(have) {
			return false
		}
	}
	for _, c := range s.chains {
		kind, ok := p.chains[c.name]
		if ok && (c.hook == nil && kind != "" || c.hook != nil && kind != c.hook.String()) {
			return false
		}
	}
	return true
}

// sameAs compares what cannot be changed.
func (s *set) sameAs(t *set) bool {
	// The kernel has a length of its own for verdicts.
	sameLen := s.dataLen == t.dataLen || s.dataType == typeVerdict
	return s.flags == t.flags && s.keyType == t.keyType && s.keyLen == t.keyLen && s.dataType == t.dataType && sameLen && s.size == t.size
}

func (h *hook) String() string { return fmt.Sprintf("%s %d %d", h.kind, h.number, h.priority) }

// deleteOthers deletes sets, chains and objects that nobody wants.
func (p *present) deleteOthers(w *batch, s *state, sets []*set) {
	chains, wanted := byName(s.chains), make(map[string]bool)
	for _, set := range sets {
		wanted[set.name] = true
	}
	for t := range s.shape.timeouts {
		wanted[t.name()] = true
	}
	lost := func(names iter.Seq[string], known func(name string) bool) []string {
		return slices.DeleteFunc(slices.Sorted(names), known)
	}
	lostChains := lost(maps.Keys(p.chains), func(name string) bool { return chains[name] != nil })
	lostSets := lost(maps.Keys(p.sets), func(name string) bool { return wanted[name] })
	// Elements go to chains, and chains to each other, so the kernel lets nothing go
	// that is not empty first.
	for _, name := range lostSets {
		w.flushSet(name)
	}
	for _, name := range lostChains {
		w.flushChain(name)
	}
	for _, name := range lostChains {
		w.deleteChain(name)
	}
	for _, name := range lostSets {
		w.deleteSet(name)
	}
	for _, name := range lost(maps.Keys(p.timeouts), func(name string) bool { return wanted[name] }) {
		w.deleteTimeouts(name)
	}
}

// present reads what the table has, without elements and rules.
func (s *socket) present() (*present, error) {
	p := newPresent()
	if err := s.list(unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME, func(body []byte) {
		p.table = p.table || text(attribute(body, unix.NFTA_TABLE_NAME)) == TableName
	}); err != nil {
		return nil, fmt.Errorf("list tables: %w", err)
	}
	if !p.table {
		return p, nil
	}
	if err := s.list(unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, func(body []byte) {
		have := readSet(body)
		if text(attribute(body, unix.NFTA_SET_TABLE)) == TableName && have.flags&unix.NFT_SET_ANONYMOUS == 0 {
			p.sets[have.name] = have
		}
	}); err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	if err := s.list(unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, func(body []byte) {
		if text(attribute(body, unix.NFTA_CHAIN_TABLE)) != TableName {
			return
		}
		kind := ""
		if h := attribute(body, unix.NFTA_CHAIN_HOOK); h != nil {
			kind = (&hook{text(attribute(body, unix.NFTA_CHAIN_TYPE)), be32(attribute(h, unix.NFTA_HOOK_HOOKNUM)), int32(be32(attribute(h, unix.NFTA_HOOK_PRIORITY)))}).String()
		}
		p.chains[text(attribute(body, unix.NFTA_CHAIN_NAME))] = kind
	}); err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	if err := s.list(unix.NFT_MSG_GETOBJ, unix.NFTA_OBJ_TABLE, func(body []byte) {
		if text(attribute(body, unix.NFTA_OBJ_TABLE)) == TableName && be32(attribute(body, unix.NFTA_OBJ_TYPE)) == unix.NFT_OBJECT_CT_TIMEOUT {
			p.timeouts[text(attribute(body, unix.NFTA_OBJ_NAME))] = bytes.Clone(attribute(body, unix.NFTA_OBJ_DATA))
		}
	}); err != nil {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	var err error
	p.digest, err = s.rulesDigest()
	return p, err
}

// list dumps what the table has of one kind.
func (s *socket) list(kind, tableAttribute uint16, f func(body []byte)) error {
	w := &buffer{}
	at := w.begin(nftablesKind|kind, unix.NLM_F_DUMP, s.next(), family, 0)
	if kind != unix.NFT_MSG_GETTABLE {
		w.text(tableAttribute, TableName)
	}
	w.end(at)
	return s.dump(w, f)
}

func readSet(body []byte) *set {
	return &set{
		name: text(attribute(body, unix.NFTA_SET_NAME)), flags: be32(attribute(body, unix.NFTA_SET_FLAGS)),
		keyType: be32(attribute(body, unix.NFTA_SET_KEY_TYPE)), keyLen: be32(attribute(body, unix.NFTA_SET_KEY_LEN)),
		dataType: be32(attribute(body, unix.NFTA_SET_DATA_TYPE)), dataLen: be32(attribute(body, unix.NFTA_SET_DATA_LEN)),
		size: be32(attribute(attribute(body, unix.NFTA_SET_DESC), unix.NFTA_SET_DESC_SIZE)),
	}
}
