package proxy

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Whatever a parcel says, what is taken of it can be served: numbers lead to what
// is there, and sessions to UDP frontends.
func FuzzParcels(f *testing.F) {
	udp := lb.Frontend{Addr: netip.MustParseAddr("192.0.2.1"), Port: 53, Protocol: lb.UDP}
	good, err := json.Marshal(estate{
		Format: estateFormat, Frontends: []frontendRecord{{Frontend: udp, Owner: lb.Owner{Cluster: "c", UID: "u"}, Serving: true}},
		Members:  []memberRecord{{Node: "n1", Addr: netip.MustParseAddr("10.0.0.1")}},
		Sessions: []sessionRecord{{Client: netip.MustParseAddrPort("198.51.100.1:5000"), Idle: time.Second, Replied: true}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte(`{"format":1,"clients":[{"frontend":0,"data":"AAAAAAAAAAEAAAAAAAAAAgAAAAM="},{"frontend":0}]}`), 2)
	f.Add(good, []byte(`{"format":1,"sessions":[{"member":1,"client":"1.2.3.4:5"}]}`), 2)
	f.Add([]byte(`{"format":2}`), []byte(`{"format":1,"members":[{"frontend":-1}]}`), 0)
	f.Fuzz(func(t *testing.T, first, second []byte, files int) {
		h := heir{frontends: make(map[lb.Frontend]*inheritance)}
		for _, data := range [][]byte{first, second} {
			x, err := decodeEstate(data, files)
			if err != nil || h.check(x) != nil {
				continue
			}
			for _, fr := range x.Frontends {
				if h.frontends[fr.Frontend] != nil {
					t.Fatalf("frontend %s was taken twice", fr.Frontend)
				}
				h.order = append(h.order, fr.Frontend)
				h.frontends[fr.Frontend] = &inheritance{owner: fr.Owner}
			}
			h.members = append(h.members, x.Members...)
			for _, r := range x.Clients {
				if id := h.order[r.Frontend]; h.frontends[id] == nil || len(r.bequests())*bequestSize != len(r.Data) {
					t.Fatalf("clients of %s: %d bytes", id, len(r.Data))
				}
			}
			for _, s := range x.Sessions {
				if id := h.order[h.members[s.Member].Frontend]; id.Protocol != lb.UDP {
					t.Fatalf("session of %s at %s", s.Client, id)
				}
			}
		}
	})
}
