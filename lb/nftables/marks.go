package nftables

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// checkMarks looks for others who use the engine's marks.
func checkMarks(direct bool) []Item {
	s, err := dial()
	if err != nil {
		return nil
	}
	defer s.close()
	items := s.setConnectionMarks()
	if direct {
		items = append(items, checkCalico()...)
	}
	return items
}

// setConnectionMarks finds rules that may change the marks by which the engine knows
// its connections. Those of iptables-legacy cannot be seen.
func (s *socket) setConnectionMarks() []Item {
	type place struct{ table, chain string }
	seen := make(map[place]bool)
	var items []Item
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, s.next(), unix.AF_UNSPEC, 0)
	w.end(at)
	_ = s.dump(w, func(body []byte) {
		p := place{text(attribute(body, unix.NFTA_RULE_TABLE)), text(attribute(body, unix.NFTA_RULE_CHAIN))}
		if p.table == TableName || seen[p] || !setsConnectionMark(attribute(body, unix.NFTA_RULE_EXPRESSIONS)) {
			return
		}
		seen[p] = true
		items = append(items, Item{
			Name: "rules of others", Doubtful: true,
			Detail: fmt.Sprintf("the chain %q of the table %q sets ct mark, by which the engine knows its connections; make sure that it leaves those alone that have a mark of the engine (ct mark and 0xfc000000 == 0xec000000), or they are taken for another load balancer's, or are reset after minutes, or go on to a dead member",
				p.chain, p.table),
		})
	})
	return items
}

// setsConnectionMark tells whether one of a rule's expressions does.
func setsConnectionMark(expressions []byte) bool {
	found := false
	attributes(expressions, func(_ uint16, b []byte) {
		data := attribute(b, unix.NFTA_EXPR_DATA)
		switch text(attribute(b, unix.NFTA_EXPR_NAME)) {
		case "ct":
			found = found || attribute(data, unix.NFTA_CT_SREG) != nil && be32(attribute(data, unix.NFTA_CT_KEY)) == unix.NFT_CT_MARK
		case "target": // of iptables
			found = found || text(attribute(data, unix.NFTA_TARGET_NAME)) == "CONNMARK" && !restores(data)
		}
	})
	return found
}

// restores tells whether a target CONNMARK only copies the connection's mark to the
// packet.
func restores(target []byte) bool {
	const restore = 2
	mode := 12 // behind three numbers
	if be32(attribute(target, unix.NFTA_TARGET_REV)) >= 2 {
		mode = 14 // and two bytes about shifts
	}
	info := attribute(target, unix.NFTA_TARGET_INFO)
	return len(info) > mode && info[mode] == restore
}

// checkCalico tells whether Calico's eBPF data plane works here.
func checkCalico() []Item {
	const itsLink = "bpfin.cali"
	if _, err := net.InterfaceByName(itsLink); err != nil {
		return nil
	}
	return []Item{{
		Name: "Calico", Doubtful: true,
		Detail: fmt.Sprintf("its eBPF data plane works here (there is the link %s), and takes packets with the marks of forwarding direct, which have its bits 0x03000000, for some that its policies have let pass; use that forwarding on machines without it", itsLink),
	}}
}
