package figure

import (
	"math"
	"slices"
)

// Estimate is what samples tell: their median, the interval that has the true
// median with a probability of 95 %, and the quartiles.
type Estimate struct {
	N              int
	Median         float64
	Low, High      float64
	Lower, Upper   float64 // quartiles
	Certain        bool    // there are enough samples for the interval
	Smallest, Most float64
}

// certainty is the probability with which an interval has the true median.
const certainty = 0.95

// fewest is the number of samples from which on there is such an interval: the
// chance that all of six are on the same side is 1/32.
const fewest = 6

// Of estimates. The interval is that of the sign test, which supposes nothing of how
// the samples are distributed. With fewer than six samples it is all of them.
func Of(values []float64) Estimate {
	n := len(values)
	if n == 0 {
		return Estimate{Median: math.NaN(), Low: math.NaN(), High: math.NaN(), Lower: math.NaN(), Upper: math.NaN(), Smallest: math.NaN(), Most: math.NaN()}
	}
	v := slices.Sorted(slices.Values(values))
	k := signRank(n)
	return Estimate{
		N: n, Median: quantile(v, .5), Low: v[k], High: v[n-1-k], Lower: quantile(v, .25), Upper: quantile(v, .75),
		Certain: n >= fewest, Smallest: v[0], Most: v[n-1],
	}
}

// signRank is how many of n sorted samples are left out on each side of the interval:
// as many as n fair coins show heads, or fewer, in less than one of forty throws.
func signRank(n int) (k int) {
	term, tail := math.Pow(.5, float64(n)), 0.0
	for i := range n {
		if tail += term; 2*tail > 1-certainty {
			break
		}
		k = i
		term *= float64(n-i) / float64(i+1)
	}
	return k
}

func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[i] + (at-float64(i))*(sorted[i+1]-sorted[i])
}

// Spread is half of the distance of the quartiles as a share of the median.
func (e Estimate) Spread() float64 {
	if e.Median == 0 {
		return 0
	}
	return (e.Upper - e.Lower) / 2 / math.Abs(e.Median)
}
