// Package traffic makes the load of the benchmarks and answers it: the servers on
// the nodes, and the clients. Each of them is one thread with one epoll instance
// and bare system calls, since client, load balancer and nodes share the machine's
// processors: whatever the load costs is taken from what is measured.
//
// Servers and clients are processes of their own, in network namespaces that the
// caller has made. Package main of the benchmarks starts its own program again with
// a role for that.
package traffic

// The ports of a node.
const (
	// RequestPort answers each request of a connection and leaves it open.
	RequestPort = 8080
	// ClosePort answers one request and closes, so that the nodes are left with
	// the sockets in TIME_WAIT.
	ClosePort = 8081
	// BulkPort sends without end.
	BulkPort = 8082
	// EchoPort returns datagrams, SinkPort swallows them.
	EchoPort = 8053
	SinkPort = 8054
)

const (
	// requestSize and answerSize are those of a small HTTP request and answer.
	requestSize = 128
	answerSize  = 256
	// datagramSize is that of a small question of DNS.
	datagramSize = 64
)
