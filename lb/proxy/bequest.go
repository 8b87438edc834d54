package proxy

import (
	"cmp"
	"context"
	"encoding/binary"
	"slices"
)

const (
	// bequestSize is the size of a bequest in bytes.
	bequestSize = 20
	// bequestsPerRecord is how many of them a record has, and a parcel one record.
	bequestsPerRecord = 1 << 14
	// maxBequests is how many are handed over at most; the others of the clients go
	// by their hash again.
	maxBequests = 1 << 17
)

// bequest is the home of a client of a frontend, for another process.
type bequest struct {
	client, member uint64
	age            uint32 // ticks since it was seen last
}

// clientsRecord is what another process is told of a frontend's clients: for each
// the hash, that of its member, and the age, with the low byte first.
type clientsRecord struct {
	Frontend int    `json:"frontend"`
	Data     []byte `json:"data"`
}

// remembered returns the homes of clients of all frontends, the youngest of each if
// there are more than can be handed over. Nothing is decided meanwhile, so that it
// must not take long: telling whom the hash would lead elsewhere would. Callers hold
// mu.
func (e *Engine) remembered(ctx context.Context) (map[*frontend][]bequest, error) {
	all := make(map[*frontend][]bequest)
	total := 0
	for _, fe := range e.frontends {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if b := fe.bequests(e.clock()); len(b) > 0 {
			all[fe] = b
			total += len(b)
		}
	}
	if total <= maxBequests {
		return all, nil
	}
	for fe, b := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		slices.SortFunc(b, func(x, y bequest) int { return cmp.Compare(x.age, y.age) })
		all[fe] = b[:len(b)*maxBequests/total]
	}
	return all, nil
}

// bequests returns the homes of the frontend's clients.
func (fe *frontend) bequests(now int64) []bequest {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	if fe.homes == nil {
		return nil
	}
	var all []bequest
	for i := range fe.homes.places {
		h := &fe.homes.places[i]
		if h.member == 0 || h.idle(tick(now), ticks(fe.spec.Load().AffinityFor)) {
			continue
		}
		b := bequest{client: h.client, member: h.member, age: h.age(tick(now))}
		if h.open > 0 {
			b.age = 0 // the other process does not see when these end
		}
		all = append(all, b)
	}
	return all
}

// clients adds the clients of the frontend that comes next.
func (w *will) clients(all []bequest, number int) {
	for part := range slices.Chunk(all, bequestsPerRecord) {
		r := clientsRecord{Frontend: number, Data: make([]byte, 0, len(part)*bequestSize)}
		for _, b := range part {
			r.Data = binary.LittleEndian.AppendUint64(r.Data, b.client)
			r.Data = binary.LittleEndian.AppendUint64(r.Data, b.member)
			r.Data = binary.LittleEndian.AppendUint32(r.Data, b.age)
		}
		w.later = append(w.later, r)
	}
}

// bequests is the inverse.
func (r clientsRecord) bequests() []bequest {
	all := make([]bequest, 0, len(r.Data)/bequestSize)
	for d := r.Data; len(d) >= bequestSize; d = d[bequestSize:] {
		all = append(all, bequest{
			client: binary.LittleEndian.Uint64(d), member: binary.LittleEndian.Uint64(d[8:]), age: binary.LittleEndian.Uint32(d[16:]),
		})
	}
	return all
}

// inheritHomes remembers what another process did. Only Set calls it.
func (fe *frontend) inheritHomes(now int64, all []bequest) {
	fe.mu.Lock()
	defer fe.mu.Unlock()
	if fe.homes == nil {
		return
	}
	timeout := ticks(fe.spec.Load().AffinityFor)
	for _, b := range all {
		if b.member == 0 || b.age > timeout || fe.homes.find(b.client) != nil {
			continue
		}
		if e := fe.homes.room(b.client, tick(now), timeout); e != nil {
			fe.homes.enter(e, home{client: b.client, member: b.member, seen: tick(now) - b.age})
		}
	}
}
