// Package handover is the protocol by which a running edge gives its place to a
// new process of it: over a unix socket in the state directory, between two
// processes of which exactly one serves at any time.
//
// # Who serves
//
// The giver serves until it sends "go", and the taker serves from then on. Up to
// "go" the giver may change its mind, for whatever reason, and goes on; the taker
// does nothing to sockets, files or addresses before it has read "go". After
// "go" the giver waits until the taker says that it serves, or is dead: the
// taker never closes the connection in between, so that its end means that the
// process has ended with everything it had open. Then the giver goes on as if
// nothing had happened.
//
//	taker                          giver
//	hello (protocols, edge)   ->           serves
//	                          <-  estate   pauses: no writes, no decisions
//	(reads the files, works
//	out its first table)
//	ready                     ->           stops reading its sockets
//	                          <-  parcel   sockets, in bounded numbers
//	got                       ->
//	                          <-  end
//	adopted                   ->
//	                          <-  go       from here on the taker serves
//	serving                   ->           lets its connections end
//
// Either side may send "abort" with a reason before its turn to say more. A giver
// that does not want to says "refuse" with a reason instead of its estate.
//
// # Versions
//
// Header, hello, refuse and abort stay as they are for ever. A hello names all
// protocols that its program speaks; the giver refuses with a reason if it speaks
// none of them.
package handover
