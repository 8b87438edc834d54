// Package nftables is the data plane in the kernel: an [lb.Engine] that writes one
// table of nf_tables by netlink, and has no part in the traffic itself. `nft list
// table inet eclusa` shows the table; testdata has such listings to read.
//
// # Why netlink by hand
//
// A transaction by netlink takes microseconds where the program nft takes 16 ms.
// The library github.com/google/nftables (0.3.0) cannot write what the rules here
// need: an address of one direction of a connection (ct original ip daddr), what
// tells nft the type of a map that numgen indexes, and it says of a refused
// transaction only that it was refused. So the package writes the messages itself;
// [batch] and [rule] are all of it.
//
// # The table
//
// Two levels of maps, and never a rule or chain for a route or member: a frontend
// leads to the mark of its route (routes4), that to the mark of its pool (pools),
// and pool and bucket to a member (buckets4). Routes that need the same share a
// chain: one for each size of pools, idle timeout, connection limit and affinity
// timeout that there is.
//
// A connection's ct mark says what it is: 0xec and the number of its route; while
// a member is chosen it is that of the pool (0xed), while it is counted against a
// limit that of the owner (0xee). It is how the engine knows its connections again,
// and how counters and limits know whose they are. Nothing else on the machine may
// set marks of these kinds.
//
// The first packet of a connection meets, in this order: source ranges, the limit,
// the idle timeout, the member that is remembered for the client, and the choice of
// a bucket: in turn, or by the client's address for affinity and source hashing.
// When it leaves it is counted and gets a source address. All other packets meet
// connection tracking only, and one chain, which counts bytes by route and member and
// picks what connection tracking calls invalid. That costs 4 to 5 % of a packet's way
// through the machine. Connection tracking's own accounting would cost a tenth of that,
// but what it has counted goes with the connection: bytes of those that end while the
// program is not there to listen, as during a restart, would be lost.
//
// Members share the buckets of a pool by weight whatever their state is (Maglev),
// and a bucket whose owner takes no connections goes to another by its hash, so a
// member's failure changes its own buckets and no others. What an edge chooses
// depends on the members alone: all edges choose alike.
//
// # Set
//
// Set works out the difference to what is in force and sends it as one transaction:
// all or nothing. The first Set, and one after somebody else has changed the table,
// compares with what the kernel has; numbers of routes, pools and owners are taken
// over from there, so connections, counters and remembered clients go on when the
// program is started again. Shutdown leaves all of it in place: [Engine.Withdraw]
// and [Cleanup] take it away. A keeper looks ten times a second whether somebody has
// changed tables, and restores this one.
//
// # Connections that must end
//
// Deleting a connection from connection tracking does not end it: a client that
// waits for an answer sends nothing, and would wait for ever. So both ends are
// provoked: a SYN that does not belong there makes either end send a segment (RFC
// 5961), which meets no connection any more and is answered with a reset that has
// the right sequence number. That is repeated twice within three seconds, since
// packets are lost, and never when a new connection has the same ends. It needs
// nf_conntrack_tcp_loose=0, so that such a segment does not begin a connection, and
// nf_conntrack_tcp_be_liberal=1, so that no living one is taken for a stray; the
// engine sets both.
//
// Idle TCP connections are reset in the same way, a moment before the kernel would
// forget them. A changed idle timeout concerns new connections only. Timeouts are
// counted in whole seconds. A limit of connections that is changed begins to count
// anew.
//
// # Packets that are routed as they are
//
// Routes with Direct set have their packets routed to members, addresses and all,
// and members may answer clients past this machine. Connection tracking would take
// such flows for broken, so it does not see them: chain direct, in front of it, knows
// in map flows which member each has (closing: those that the client has ended),
// marks the packet with that member's number (map gateways), and a routing rule for
// the mark leads to a routing table with nothing but the way to the member. A flow
// that is in no map, because it is new or there are too many, goes where its hash
// says (slots); a segment in the middle of a connection is left to connection
// tracking first, which knows connections of before the route was of this kind. ICMP
// errors about what members have sent follow the flow that they quote, if they come to
// its load balancer's address.
//
// Set takers has the members that take new connections of any pool: not those that
// drain. It decides whether a client goes where it went before (homes, and a first
// segment with the ports of a flow that is known).
//
// A member that is dead leaves set members, so that each flow of it ends with the
// next packet; then its flows are replaced by tombstones, which are answered with
// resets, and their clients are provoked.
//
// What was removed drains like connections by translation: the frontend stays in map
// holders, and the member keeps its number. A program that is started again finds both
// there, and lets them drain for 30 seconds, or for what is left of their time if the
// one before has handed over.
//
// Packets for members must not meet the rule for the machine's own addresses, since
// load balancers' addresses are among those: the engine has one in its place, at 0, that
// is not for them. The next of its rules comes before the first rule of others, and
// has packets for members jump over all of these, to 40000, where each member has a
// rule; at 40001 packets are dropped for which there is no way, since a program of this
// machine must not get them. So other packets meet what they would meet without, and a
// rule that is added without a priority gets the one that it would get: the kernel takes
// the one before the second rule of all, which must be none of the engine's with a small
// priority. Where somebody else has a rule at 0 too, or has moved that for own addresses,
// members that were not served before are refused. The keeper looks once a second
// whether rules, routes and settings of links are there, and in their place, and
// restores them. Their protocol is the kernel's: systemd-networkd deletes what has
// another.
//
// Answers that come back through this machine have a source that is its own: links to
// members get accept_local=1 and rp_filter=2. What they had before is in set
// link_settings. When the last such route has gone everything is put back, as [Cleanup]
// does.
//
// # What it cannot do
//
// PROXY protocol, least connections, connect timeouts, members of the other family,
// a second try at another member, SCTP. Routes that need such are refused before
// the kernel sees them. Bytes in counters include headers; those between a client and
// a member that are both on the edge itself count twice.
package nftables
