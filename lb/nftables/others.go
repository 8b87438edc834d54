package nftables

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// checkOthers looks for what others do that is in the engine's way.
func checkOthers(direct bool) []Item {
	s, err := dial()
	if err != nil {
		return nil
	}
	defer s.close()
	items := append(s.dropsForwarded(direct), s.setsConnectionMarks()...)
	if direct {
		items = append(items, checkCalico()...)
	}
	return items
}

const othersName = "rules of others"

// dropsForwarded looks for chains that drop what is forwarded.
func (s *socket) dropsForwarded(direct bool) []Item {
	const hookForward = 2
	accept := "those to and from members (ct mark and 0xff000000 == 0xec000000)"
	if direct {
		accept += ", and with forwarding direct, which connection tracking does not see, those to members (meta mark and 0xff000000 == 0xef000000) and those from load balancers' addresses"
	}
	var items []Item
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, s.next(), unix.AF_UNSPEC, 0)
	w.end(at)
	_ = s.dump(w, func(body []byte) {
		h := attribute(body, unix.NFTA_CHAIN_HOOK)
		policy := attribute(body, unix.NFTA_CHAIN_POLICY)
		if h != nil && be32(attribute(h, unix.NFTA_HOOK_HOOKNUM)) == hookForward && policy != nil && be32(policy) == verdictDrop {
			items = append(items, Item{
				Name: othersName, Doubtful: true,
				Detail: fmt.Sprintf("the chain %q of the table %q drops forwarded packets that it does not know; it must accept %s",
					text(attribute(body, unix.NFTA_CHAIN_NAME)), text(attribute(body, unix.NFTA_CHAIN_TABLE)), accept),
			})
		}
	})
	return items
}

// setsConnectionMarks looks for rules that may change the marks by which the engine
// knows its connections. Those of iptables-legacy cannot be seen.
func (s *socket) setsConnectionMarks() []Item {
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
			Name: othersName, Doubtful: true,
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

// besideClusterProxy says what is not as elsewhere.
const besideClusterProxy = "A segment that comes so late that connection tracking calls it invalid may get its connection reset then"

// clusterProxy tells whether a proxy of Kubernetes works in this network namespace,
// and how that is known; otherwise it is empty. Such a proxy, and the pods whose
// packets it translates, need settings of their own.
func clusterProxy(s *socket) string {
	var found string
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, s.next(), unix.AF_UNSPEC, 0)
	w.end(at)
	_ = s.dump(w, func(body []byte) {
		table, chain := text(attribute(body, unix.NFTA_CHAIN_TABLE)), text(attribute(body, unix.NFTA_CHAIN_NAME))
		if found == "" && (table == "kube-proxy" || strings.HasPrefix(chain, "KUBE-")) {
			found = fmt.Sprintf("the chain %q of the table %q is kube-proxy's", chain, table)
		}
	})
	if found != "" {
		return found
	}
	for _, file := range []string{"/proc/self/net/tcp", "/proc/self/net/tcp6"} {
		if listens(file, clusterProxyPort) {
			return fmt.Sprintf("somebody listens on TCP port %d, where kube-proxy tells its health", clusterProxyPort)
		}
	}
	return ""
}

const clusterProxyPort = 10256

// listens tells whether a list of sockets has one that listens on the port.
func listens(file string, port uint16) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	const listening = "0A"
	suffix := fmt.Sprintf(":%04X", port)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) > 3 && strings.HasSuffix(fields[1], suffix) && fields[3] == listening {
			return true
		}
	}
	return false
}
