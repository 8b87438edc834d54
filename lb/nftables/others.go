package nftables

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// checkOthers looks for rules of others that drop what is forwarded.
func checkOthers(direct bool) []Item {
	accept := "it must accept those to and from members (ct mark and 0xff000000 == 0xec000000)"
	if direct {
		accept += "; with forwarding direct, which connection tracking does not see, those to nodes (meta mark and 0xff000000 == 0xef000000) and those from the addresses of load balancers"
	}
	s, err := dial()
	if err != nil {
		return nil
	}
	defer s.close()
	const hookForward = 2
	var items []Item
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP, s.next(), unix.AF_UNSPEC, 0)
	w.end(at)
	_ = s.dump(w, func(body []byte) {
		h := attribute(body, unix.NFTA_CHAIN_HOOK)
		policy := attribute(body, unix.NFTA_CHAIN_POLICY)
		if h != nil && be32(attribute(h, unix.NFTA_HOOK_HOOKNUM)) == hookForward && policy != nil && be32(policy) == verdictDrop {
			items = append(items, Item{
				Name: "rules of others", Doubtful: true,
				Detail: fmt.Sprintf("the chain %q of the table %q drops forwarded packets that it does not know; %s",
					text(attribute(body, unix.NFTA_CHAIN_NAME)), text(attribute(body, unix.NFTA_CHAIN_TABLE)), accept),
			})
		}
	})
	return items
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
