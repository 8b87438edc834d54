package proxy

import (
	"slices"
	"sort"
)

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
	type preference struct{ at, skip int }
	order := make([]preference, len(candidates))
	for i, c := range candidates {
		order[i] = preference{
			at:   int(c.hash % uint64(size)),          //nolint:gosec // less than size
			skip: int(mix(c.hash)%uint64(size-1)) + 1, //nolint:gosec // less than size
		}
	}
	table := slices.Repeat([]int32{-1}, size)
	for _, i := range maglevTurns(candidates, size) {
		p := &order[i]
		for table[p.at] >= 0 {
			if p.at += p.skip; p.at >= size {
				p.at -= size
			}
		}
		table[p.at] = i
	}
	return table
}

// maglevTurns returns who takes a place when. In each round the heaviest candidate
// has a turn and another one its share of a turn, so that its turn k comes in the
// round in which it has k shares of the heaviest; within a round the turns go by
// position. Going through the rounds would take as many steps as rounds times
// candidates, nearly all for nothing where one is heavy; so the turns are counted
// by their rounds and put in order at once.
func maglevTurns(candidates []candidate, size int) []int32 {
	heaviest := 0
	for _, c := range candidates {
		heaviest = max(heaviest, c.weight)
	}
	rounds := 1 + sort.Search(size-1, func(before int) bool {
		turns := 0
		for _, c := range candidates {
			turns += (before + 1) * c.weight / heaviest
		}
		return turns >= size
	})
	each := func(turn func(i, round int)) {
		for i, c := range candidates {
			for k := 1; ; k++ {
				round := (k*heaviest + c.weight - 1) / c.weight
				if round > rounds {
					break
				}
				turn(i, round)
			}
		}
	}
	next := make([]int, rounds+2) // where the next turn of a round goes
	each(func(_, round int) { next[round+1]++ })
	for round := range rounds + 1 {
		next[round+1] += next[round]
	}
	turns := make([]int32, next[rounds+1])
	each(func(i, round int) {
		turns[next[round]] = int32(i) //nolint:gosec // fewer than 2^31
		next[round]++
	})
	return turns[:size]
}

// hashed chooses by the client's address and the table. The clients of a
// candidate that will not do are spread over the others as rendezvous does, and so
// are all while there is no table.
func (fe *frontend) hashed(client uint64, ok func(int) bool) int {
	if p := fe.view.placed.Load(); p != nil {
		if i := p.place(client); i >= 0 && ok(i) {
			return i
		}
	}
	return fe.view.rendezvous(client, ok)
}
