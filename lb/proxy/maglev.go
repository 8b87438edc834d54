package proxy

import "slices"

// maglevSizes are the sizes of tables by the largest number of members that a
// table of the size is for: primes, with a hundred places or more for each member.
// There are few, since another size moves nearly all clients; and they go by the
// members of the group in whatever state, so that health never changes the size.
var maglevSizes = []struct{ members, size int }{
	{16, 4_093},
	{128, 16_381},
	{1_000, 100_003},
	{10_000, 1_000_003},
}

func maglevSize(members int) int {
	for _, s := range maglevSizes {
		if members <= s.members {
			return s.size
		}
	}
	return maglevSizes[len(maglevSizes)-1].size
}

// maglev returns a table with a candidate's position in each place, after
// Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
// NSDI 2016: each candidate prefers the places in an order of its own, and they
// take the best free ones in turns, as many turns as their weights give. It depends
// on the candidates alone, so that all edges have the same one.
func maglev(candidates []candidate, size int) []int32 {
	if len(candidates) == 0 {
		return nil
	}
	type preference struct{ at, skip, credit, weight int }
	heaviest := 0
	order := make([]preference, len(candidates))
	for i, c := range candidates {
		order[i] = preference{
			at:     int(c.hash % uint64(size)),          //nolint:gosec // less than size
			skip:   int(mix(c.hash)%uint64(size-1)) + 1, //nolint:gosec // less than size
			weight: c.weight,
		}
		heaviest = max(heaviest, c.weight)
	}
	table := slices.Repeat([]int32{-1}, size)
	for filled := 0; ; {
		for i := range order {
			p := &order[i]
			if p.credit += p.weight; p.credit < heaviest {
				continue
			}
			p.credit -= heaviest
			for table[p.at] >= 0 {
				p.at = (p.at + p.skip) % size
			}
			table[p.at] = int32(i)
			if filled++; filled == size {
				return table
			}
		}
	}
}

// table returns the view's table, which is made at the first call.
func (v *view) table() []int32 {
	v.once.Do(func() { v.places = maglev(v.candidates, maglevSize(v.size)) })
	return v.places
}

// hashed chooses by the client's address and the table. The clients of a
// candidate that will not do are spread over the others as rendezvous does.
func (fe *frontend) hashed(client uint64, ok func(int) bool) int {
	if table := fe.view.table(); len(table) > 0 {
		if i := int(table[client%uint64(len(table))]); ok(i) {
			return i
		}
	}
	return fe.view.rendezvous(client, ok)
}
