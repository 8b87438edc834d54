package nftables

import (
	"cmp"
	"hash/fnv"
	"math"
	"net/netip"
	"slices"

	"github.com/eclusa-lb/eclusa/lb"
)

const (
	// bucketsPerMember is how many buckets the lightest member has at least, so
	// that shares differ from the wanted ones by an eighth at most.
	bucketsPerMember = 8
	minBuckets       = 16
	maxBuckets       = 1 << 16
)

// bucketCount is how many buckets a pool of these backends has. It does not
// depend on their states.
func bucketCount(backends []lb.Backend) int {
	total, least := 0, math.MaxInt
	for _, b := range backends {
		total += max(b.Weight, 1)
		least = min(least, max(b.Weight, 1))
	}
	n := minBuckets
	for n < maxBuckets && n*least < total*bucketsPerMember {
		n *= 2
	}
	return n
}

// fill gives each bucket to a member. Which one is decided by the backends alone,
// so that every edge decides alike, and in two steps, so that a change of health
// concerns only the buckets of the member that it is about: first all members,
// whatever their state, share the buckets by weight (Maglev: each in turn takes the
// next free one of its own permutation); then a bucket whose owner takes no
// connections goes to the active member with the highest hash for it.
func fill(backends []lb.Backend, size int) []netip.Addr {
	buckets := make([]netip.Addr, size)
	active := slices.ContainsFunc(backends, func(b lb.Backend) bool { return b.State == lb.Active })
	if !active {
		return buckets
	}
	hashes := make([]uint64, len(backends))
	for i, b := range backends {
		hashes[i] = memberHash(b)
	}
	for bucket, owner := range shares(backends, hashes, size) {
		if backends[owner].State != lb.Active {
			owner = substitute(backends, hashes, bucket)
		}
		buckets[bucket] = backends[owner].Addr
	}
	return buckets
}

// shares returns the owner of each bucket, an index of backends.
func shares(backends []lb.Backend, hashes []uint64, size int) []int {
	owners := make([]int, size)
	for i := range owners {
		owners[i] = -1
	}
	// In the order of their hashes, so that names have no advantage.
	order := make([]int, len(backends))
	heaviest := 1
	for i, b := range backends {
		order[i] = i
		heaviest = max(heaviest, b.Weight)
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(hashes[a], hashes[b]) })
	next := make([]uint64, len(backends))
	credit := make([]int, len(backends))
	for left := size; left > 0; {
		for _, i := range order {
			credit[i] += max(backends[i].Weight, 1)
			for ; credit[i] >= heaviest && left > 0; credit[i] -= heaviest {
				// size is a power of two, so an odd step comes by every bucket.
				offset, step := hashes[i], mix(hashes[i]+1)|1
				for {
					at := (offset + next[i]*step) % uint64(size)
					next[i]++
					if owners[at] < 0 {
						owners[at] = i
						left--
						break
					}
				}
			}
		}
	}
	return owners
}

// substitute returns the active member that takes a bucket of one that is not.
func substitute(backends []lb.Backend, hashes []uint64, bucket int) int {
	best, bestScore := -1, math.Inf(-1)
	for i, b := range backends {
		if b.State != lb.Active {
			continue
		}
		h := mix(hashes[i] ^ mix(uint64(bucket)+0x9e3779b97f4a7c15))
		// With u uniform in (0,1), -weight/ln(u) is largest for a member with a
		// probability in proportion to its weight.
		u := (float64(h>>11) + 0.5) / (1 << 53)
		if score := -float64(max(b.Weight, 1)) / math.Log(u); score > bestScore {
			best, bestScore = i, score
		}
	}
	return best
}

// memberHash is the same in every process.
func memberHash(b lb.Backend) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(b.Node))
	a := b.Addr.As16()
	_, _ = h.Write(a[:])
	return mix(h.Sum64())
}

// mix spreads the bits of x over all bits of the result (the finalizer of
// splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}
