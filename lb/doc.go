// Package lb is the vocabulary of eclusa: what a cluster wants from a load
// balancer ([Config]), what packets follow ([Table]), what an edge reports
// ([Status]), and the two contracts that everything else implements or uses:
// [Balancer], an edge as its clients see it, and [Engine], a data plane as an
// edge sees it.
//
// Two pure functions carry the package. [Config.Validate] names everything
// that is wrong with a configuration; [Compile] turns the configurations of all
// clusters, their policies and what is known about health into one Table. It
// is the only place where health meets traffic. [Prepare] is the part of it that
// need not be done again when only health has changed.
//
// Values of this package are immutable once they were handed over: whoever
// wants another Config builds a new one, sharing what did not change. The
// package starts no goroutine, logs nothing and knows neither Kubernetes nor
// HTTP.
package lb
