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
// own. A loop waits in epoll_wait(2), past the poller and the scheduler of
// the Go runtime, which would cost several system calls and switches per event:
// each loop blocks a thread, and the program gets one more processor of the
// runtime (GOMAXPROCS) for each, so that others have theirs. What the kernel
// tells of both sides of a connection is looked at once per round.
//
// A listener belongs to one loop, and is one socket: several with SO_REUSEPORT
// would lose what waits in the queue of one that is closed or handed over. Its loop
// gives connections to others when it has some more than they.
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
// Datagrams of one sender that the kernel has joined arrive together (UDP_GRO), and
// those of one size and one session that come together leave together, as one message
// that the kernel or the link cuts (UDP_SEGMENT). A socket keeps that when it is handed
// over, so whatever takes it over must part what it receives.
//
// # Members that fail
//
// A dial takes at most 500 ms, or what the route says; a connection tries up to
// three members within four times as long or two seconds, whichever is longer, and
// is reset if none answers. A member is tried a second time only if
// no other is left and it was silent, not refusing: the one packet may have been
// lost, and the kernel would send it again only after a second. A member that failed is
// avoided while there are others, but for one connection per second that
// tries it again, so that a dead member costs one delayed connection per second
// from its first failure on until the health check takes it out. A member that
// refuses is avoided by the frontend only, one that does not answer by all
// frontends of the group.
//
// # PROXY protocol
//
// A member of a route with ProxyProtocol gets the header as the first thing on
// each connection, as soon as the dial has succeeded: together with what the client
// has sent by then, but without waiting for it, since the member may speak first.
// The header has the addresses and ports of the client and of the frontend, which
// are of one family, whatever that of the member is. Nothing but a client's
// connection ever carries one: health checks do not. It is refused for UDP. The
// protocol has a code for datagrams, but not a word on whether each carries a
// header, or the first of a flow whose end only one side knows; receivers differ,
// most take none, and one that does not expect the header takes it for data.
//
// # Clients
//
// Source ranges are looked up in sorted, disjoint ranges, once per connection or
// session. When they change, what is open and not allowed any more ends in all
// loops: TCP with a reset, UDP sessions silently. Connections that a former process
// drains after a hand-over do not follow changes.
//
// With affinity, clients go by rendezvous hashing over their address, and every
// frontend remembers which member each client has reached within the timeout. So
// a member that joins or comes back takes nobody away, and a client whose member is
// lost stays with the next one. A connection that is open counts as being there;
// one that had to go elsewhere, since the member did not answer just then, moves
// nobody. A UDP client has reached a member when that has answered. The memory is
// bounded (Options.AffinityClients); when it is short, each cluster has the same
// share, and each load balancer of a cluster. The youngest 131,072 clients are handed
// over to the next process; whoever is not remembered goes by the hash, as on another
// edge and after a crash. Affinity goes before the algorithm.
//
// SourceHash keeps no memory: a Maglev table of the group's active members decides,
// on every edge alike. Its size goes by the number of members in whatever state,
// in few steps, since another size moves nearly all clients: 16, 128 and 1,000. Tables
// are made beside Set, and equal groups share one; until a table is there, the one
// before goes on with the members that are left.
//
// # Families
//
// A backend is reached in the family of its address, whatever that of the client.
//
// # Limits
//
// Each frontend costs a descriptor and about 1 KiB, and counts against the
// descriptors of the engine like connections (two each) and sessions (one each). A
// frontend for which none is left is refused with [lb.ErrExhausted]. To open 2,000
// ports takes about 25 ms, and a Set that changes none of them one.
//
// # Refusing
//
// A frontend without an active member stays bound to its TCP port but does not
// listen (shutdown(2) on the listening socket), and gives its UDP port back; the
// kernel then answers with a reset or an ICMP port unreachable message. Such
// refusals are not counted, since the engine does not see them. Another program
// may take the port meanwhile, which the Set that wants it back tells. While sessions
// of a UDP frontend go on with draining members its port stays open, and the engine
// itself sends the ICMP message to new clients, for which it needs CAP_NET_RAW;
// without that they get no answer.
package proxy
