package contender

import (
	"github.com/eclusa-lb/eclusa/lb"
	"github.com/eclusa-lb/eclusa/lb/nftables"
)

// The engine in the kernel has a pool of source addresses, as its documentation
// recommends.
func init() {
	engines["nftables"] = func() lb.Engine { return nftables.New(nftables.Options{SourceAddresses: Sources(PoolSize)}) }
	All = append(All, engine{name: "nftables"})
}
