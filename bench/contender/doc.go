// Package contender has what the benchmarks compare: eclusa's engines, HAProxy,
// nginx, rules of nftables as kube-proxy writes them, and no load balancer at all;
// and the network of namespaces in which each of them stands.
//
// Every contender has a network of its own: a client, an edge and three nodes. So
// what one leaves behind (sockets in TIME_WAIT above all) concerns nobody else, and
// all can be measured in turn without being started again.
package contender
