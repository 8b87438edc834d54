// Package proxy is the data plane in user space: an [lb.Engine] that accepts
// TCP connections and UDP datagrams itself and passes them on to members. It
// needs no privilege beyond low ports.
//
// # Loops
//
// The engine runs a few event loops, one per processor. A loop owns
// connections, sessions and listeners outright: everything about one of them
// happens in one goroutine, without locks, and an idle connection costs two
// descriptors and one small struct, no goroutine, no buffer, no timer of its
// own. A loop waits on an epoll descriptor of its own, which itself sits in
// the poller of the Go runtime, so that no thread is blocked while nothing
// happens.
//
// Set never touches a connection. It stores new views of groups and routes
// through atomic pointers, which the next pick sees, and posts what must happen
// to listeners and connections to the loops. Connections are indexed by frontend
// and member (a link), so that a change costs what it changes.
//
// # Bytes
//
// Bytes are read into the one buffer of the loop and written at once. Only what
// the other side does not take is kept, in a buffer of the connection, and
// nothing more is read until it is gone. After several full reads in a row the
// direction goes over to splice(2) with a pipe that it holds only while it
// moves bytes.
//
// # Members that fail
//
// A dial takes at most 500 ms; a connection tries up to three members within two
// seconds and is reset if none answers. A member is tried a second time only if
// no other is left and it was silent, not refusing: the one packet may have been
// lost, and the kernel would send it again only after a second. A member that failed is
// avoided while there are others, but for one connection per second that
// tries it again, so that a dead member costs one delayed connection per second
// from its first failure on until the health check takes it out. A member that
// refuses is avoided by the frontend only, one that does not answer by all
// frontends of the group.
//
// # Refusing
//
// A frontend without an active member stays bound to its TCP port but does not
// listen (shutdown(2) on the listening socket), and gives its UDP port back; the
// kernel then answers with a reset or an ICMP port unreachable message. Such
// refusals are not counted, since the engine does not see them. Another program
// may take the port meanwhile, which the Set that wants it back tells. While sessions
// of a UDP frontend go on with draining members its port stays open, and new
// clients get no answer.
package proxy
