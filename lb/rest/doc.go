// Package rest carries [lb.Balancer] over HTTPS: [NewHandler] serves the
// balancers of an edge, and a [Client] is one of them somewhere else. A caller
// of the interface cannot tell the two ends apart.
//
// Both sides prove who they are (TLS 1.3, mutual), and the common name of the
// client's certificate is the one cluster that it may touch. A configuration is
// always meant as a whole, but travels as an RFC 7396 merge patch: [Diff] works
// it out, [ApplyPatch] puts it together again, and either costs what changed,
// not what there is. Refusals are RFC 9457 problem documents; one table turns
// the errors of package lb into them and back, so that errors.Is holds across
// the network.
//
// docs/protocol.md describes every call with an example.
package rest
