package rest

import (
	"net/url"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// HeaderEpoch carries the right to write, see [lb.Epoch].
const HeaderEpoch = "Eclusa-Epoch"

// The media types of bodies.
const (
	TypeJSON       = "application/json"
	TypeMergePatch = "application/merge-patch+json"
	TypeProblem    = "application/problem+json"
	// TypeWrite wraps the body of a PUT or PATCH that confirms removals: an
	// object with "confirmedRemovals", a list of keys, and either "config" or
	// "mergePatch", what the body would be otherwise. The keys are in the body
	// because thousands of them do not fit into a header.
	TypeWrite = "application/vnd.eclusa.write+json"
)

// Limits of the protocol.
const (
	// DefaultMaxBody is the largest body of a write that a handler reads unless
	// told otherwise, in bytes: 20,000 load balancers of 3 kB each.
	DefaultMaxBody = 64 << 20
	// MaxWait is the longest time that a poll of the status may ask to wait.
	MaxWait = 60 * time.Second
	// MinStatusGap is the shortest time between two answers to one poller.
	MinStatusGap = 200 * time.Millisecond

	maxClaim   = 64 << 10 // body of a claim, bytes
	smallBody  = 1 << 20  // beyond it a write is large, bytes
	maxLarge   = 2        // large writes of a cluster at once, which bounds their memory
	maxAnswer  = 256 << 20
	maxInfo    = 1 << 20
	maxProblem = 8 << 20 // holds the keys of 100,000 held removals
	maxToken   = 512     // epoch, digest and cursor, bytes
)

// Paths below a cluster.
const (
	pathInfo     = "/v1/info"
	pathClusters = "/v1/clusters/"
	nounLease    = "/lease"
	nounConfig   = "/config"
	nounStatus   = "/status"
)

func clusterPath(c lb.Cluster, noun string) string {
	return pathClusters + url.PathEscape(string(c)) + noun
}

// epochBody answers a claim.
type epochBody struct {
	Epoch lb.Epoch `json:"epoch"`
}

// receiptBody answers a write.
type receiptBody struct {
	Digest  lb.Digest `json:"digest"`
	Durable bool      `json:"durable"`
}

// writeBody is the envelope of TypeWrite. Of Config and MergePatch exactly one
// is there.
type writeBody struct {
	ConfirmedRemovals []string `json:"confirmedRemovals"`
	Config            rawJSON  `json:"config,omitempty"`
	MergePatch        rawJSON  `json:"mergePatch,omitempty"`
}

// validToken reports whether s can be an epoch, a digest or a cursor on the
// wire: visible ASCII without quotes, which neither a header nor an entity tag
// has to escape.
func validToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}

// entityTag is the ETag of a digest.
func entityTag(d lb.Digest) string { return `"` + string(d) + `"` }

// parseEntityTag reads one strong entity tag.
func parseEntityTag(s string) (lb.Digest, bool) {
	if len(s) < 3 || s[0] != '"' || s[len(s)-1] != '"' || !validToken(s[1:len(s)-1]) {
		return "", false
	}
	return lb.Digest(s[1 : len(s)-1]), true
}
