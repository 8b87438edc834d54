package lbtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/eclusa-lb/eclusa/lb"
)

// Trait is a way of working that not every engine has, and that is not a
// capability that users ask for. TestEngine takes the traits that an engine lacks.
type Trait string

// The traits.
const (
	// DialRetry: a connection that a member does not answer goes to another one.
	DialRetry Trait = "dial-retry"
	// OwnSockets: the engine has listening sockets, and another program's socket on
	// a frontend's address keeps it from serving.
	OwnSockets Trait = "own-sockets"
	// ByteCounts: the engine counts bytes by member.
	ByteCounts Trait = "byte-counts"
	// ExactTurns: without anybody else, members get connections strictly in turn.
	ExactTurns Trait = "exact-turns"
)

// TestEngine checks that the engines that newEngine makes behave as [lb.Engine]
// and [lb.Table] say, with clients and members on the network n, for each
// protocol and family that engine and network have. Each case gets an engine of
// its own, and must leave no goroutine or descriptor behind after its Shutdown.
// newEngine starts nothing and shuts nothing down.
func TestEngine(t *testing.T, newEngine func(t *testing.T) lb.Engine, n Network, lacks ...Trait) {
	warmUp(t, n)
	capabilities := newEngine(t).Capabilities()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, trait := range c.traits {
				if slices.Contains(lacks, trait) {
					t.Skipf("the engine lacks %s", trait)
				}
			}
			for _, need := range c.needs {
				if !slices.Contains(capabilities, need) {
					t.Skipf("the engine is not capable of %s", need)
				}
			}
			for _, proto := range c.protocols {
				for _, family := range []lb.Family{lb.IPv4, lb.IPv6} {
					t.Run(fmt.Sprintf("%s-%s", proto, family), func(t *testing.T) {
						if n.Addresses(family) == 0 {
							t.Skipf("the network has no %s", family) // on purpose: a network may be for one family
						}
						for _, need := range []lb.Capability{lb.Capability(proto), lb.Capability(family)} {
							if !slices.Contains(capabilities, need) {
								t.Skipf("the engine is not capable of %s", need)
							}
						}
						runCase(t, newEngine, n, c, proto, family, lacks)
					})
				}
			}
		})
	}
}

// runCase runs one case and checks what is left afterwards.
func runCase(t *testing.T, newEngine func(t *testing.T) lb.Engine, n Network, c engineCase, proto lb.Protocol, family lb.Family, lacks []Trait) {
	before := measure()
	t.Cleanup(func() {
		if !t.Failed() && !t.Skipped() {
			checkLeaks(t, before)
		}
	})
	r := &rig{TB: t, net: n, engine: newEngine(t), spare: func() lb.Engine { return newEngine(t) }, proto: proto, family: family, lacks: lacks, done: make(chan struct{})}
	t.Cleanup(func() {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		if err := r.engine.Shutdown(now); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
	})
	defer close(r.done)
	c.run(r)
}

// warmUp makes the runtime open what it keeps for ever.
func warmUp(t *testing.T, n Network) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_ = n.Addresses(lb.IPv6)
}

// engineCase is one behaviour.
type engineCase struct {
	name      string
	protocols []lb.Protocol
	needs     []lb.Capability
	traits    []Trait
	run       func(r *rig)
}

var (
	both    = []lb.Protocol{lb.TCP, lb.UDP}
	onlyTCP = []lb.Protocol{lb.TCP}
	onlyUDP = []lb.Protocol{lb.UDP}
)

// cases are all behaviours, simple ones first.
var cases = []engineCase{
	{name: "RoundRobinSpreads", protocols: both, run: roundRobinSpreads},
	{name: "WeightsCount", protocols: both, run: weightsCount},
	{name: "LeastConnections", protocols: both, needs: []lb.Capability{lb.CapLeastConnections}, run: leastConnections},
	{name: "RandomTwoChoices", protocols: both, needs: []lb.Capability{lb.CapRandomTwoChoices}, run: randomTwoChoices},
	{name: "SourceHash", protocols: both, needs: []lb.Capability{lb.CapSourceHash}, run: sourceHash},
	{name: "AffinityHolds", protocols: both, needs: []lb.Capability{lb.CapAffinity}, run: affinityHolds},
	{name: "AffinityKeepsWhenMembersJoin", protocols: both, needs: []lb.Capability{lb.CapAffinity}, run: affinityJoin},
	{name: "AffinityLive", protocols: both, needs: []lb.Capability{lb.CapAffinity}, run: affinityLive},
	{name: "AffinityHandOver", protocols: both, needs: []lb.Capability{lb.CapAffinity}, run: affinityHandOver},
	{name: "SourceRanges", protocols: both, needs: []lb.Capability{lb.CapSourceRanges}, run: sourceRanges},
	{name: "SourceRangesEnd", protocols: both, needs: []lb.Capability{lb.CapSourceRanges}, run: sourceRangesEnd},
	{name: "SourceRangesHandOver", protocols: onlyUDP, needs: []lb.Capability{lb.CapSourceRanges}, run: sourceRangesHandOver},
	{name: "MaxConnections", protocols: both, needs: []lb.Capability{lb.CapMaxConnections}, run: maxConnections},
	{name: "Counters", protocols: both, traits: []Trait{ByteCounts}, run: countersCount},

	{name: "ProxyV1", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV1}, run: speaksProxy(lb.ProxyV1)},
	{name: "ProxyV2", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV2}, run: speaksProxy(lb.ProxyV2)},
	{name: "ProxyStreams", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV1, lb.CapProxyV2}, run: proxyStreams},
	{name: "ProxyRetries", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV2}, traits: []Trait{DialRetry}, run: proxyRetries},
	{name: "ProxyChanges", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV1, lb.CapProxyV2}, run: proxyChanges},
	{name: "ProxyHandOver", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV2}, run: proxyHandOver},
	{name: "ProxyTranslates", protocols: onlyTCP, needs: []lb.Capability{lb.CapProxyV1, lb.CapProxyV2, lb.CapFamilyTranslation}, run: proxyTranslates},
	{name: "FamilyTranslation", protocols: both, needs: []lb.Capability{lb.CapFamilyTranslation}, run: familyTranslation},
	{name: "ConnectTimeout", protocols: onlyTCP, needs: []lb.Capability{lb.CapConnectTimeout}, traits: []Trait{DialRetry}, run: connectTimeout},

	{name: "HalfClose", protocols: onlyTCP, run: halfClose},
	{name: "LargeTransfers", protocols: onlyTCP, run: largeTransfers},
	{name: "SlowReader", protocols: onlyTCP, run: slowReader},
	{name: "ManySmall", protocols: onlyTCP, run: manySmall},
	{name: "ResetPasses", protocols: onlyTCP, run: resetPasses},
	{name: "IdleTimeoutTCP", protocols: onlyTCP, run: idleTimeoutTCP},
	{name: "IdleTimeoutUDP", protocols: onlyUDP, run: idleTimeoutUDP},
	{name: "DatagramSizes", protocols: onlyUDP, run: datagramSizes},
	{name: "SessionsApart", protocols: onlyUDP, run: sessionsApart},

	{name: "NoMemberRefuses", protocols: both, run: noMemberRefuses},
	{name: "AllRefuse", protocols: onlyTCP, run: allRefuse},
	{name: "RetryRefusing", protocols: onlyTCP, traits: []Trait{DialRetry}, run: retryRefusing},
	{name: "RetryRefusingUDP", protocols: onlyUDP, traits: []Trait{DialRetry}, run: retryRefusingUDP},
	{name: "RetrySilent", protocols: onlyTCP, traits: []Trait{DialRetry}, run: retrySilent},
	{name: "DeadResets", protocols: onlyTCP, run: deadResets},
	{name: "DeadKeepsUnlessReset", protocols: onlyTCP, run: deadKeepsUnlessReset},
	{name: "DeadForgets", protocols: onlyUDP, run: deadForgets},

	{name: "DrainingKeeps", protocols: both, run: drainingKeeps},
	{name: "MemberRemovalDrains", protocols: onlyTCP, run: memberRemovalDrains},
	{name: "MemberBackInTime", protocols: onlyTCP, run: memberBackInTime},
	{name: "RouteRemovalDrains", protocols: onlyTCP, run: routeRemovalDrains},
	{name: "RouteBackInTime", protocols: onlyTCP, run: routeBackInTime},
	{name: "RouteChangesKeep", protocols: onlyTCP, run: routeChangesKeep},
	{name: "OwnerChangeDrains", protocols: onlyTCP, run: ownerChangeDrains},
	{name: "OwnerChangeForgets", protocols: onlyUDP, run: ownerChangeForgets},
	{name: "IdenticalSet", protocols: both, run: identicalSet},
	{name: "SwapsUnderLoad", protocols: both, run: swapsUnderLoad},
	{name: "ChangesUnderLoad", protocols: both, needs: []lb.Capability{
		lb.CapAffinity, lb.CapConnectTimeout, lb.CapRandomTwoChoices, lb.CapSourceHash, lb.CapSourceRanges,
	}, run: changesUnderLoad},
	{name: "OthersUndisturbed", protocols: both, run: othersUndisturbed},
	{name: "SharedAddress", protocols: both, run: sharedAddress},
	{name: "BindConflict", protocols: both, traits: []Trait{OwnSockets}, run: bindConflict},
	{name: "PortRange", protocols: both, run: portRange},
	{name: "ThousandsOfListeners", protocols: both, run: thousandsOfListeners},

	{name: "ShutdownDrains", protocols: both, run: shutdownDrains},
	{name: "ShutdownEarly", protocols: onlyTCP, run: shutdownEarly},
	{name: "ShutdownUnused", protocols: onlyTCP, run: shutdownUnused},

	{name: "HandOverKeeps", protocols: both, run: handOverKeeps},
	{name: "HandOverTwice", protocols: both, run: handOverTwice},
	{name: "HandOverResumes", protocols: both, run: handOverResumes},
	{name: "HandOverDrops", protocols: both, traits: []Trait{OwnSockets}, run: handOverDrops},
}

// soon is the drain and idle timeout of cases that wait for it.
const soon = 400 * time.Millisecond

// Lacking skips a test for what the machine lacks, and fails it where CI is set:
// there everything has to be.
func Lacking(tb testing.TB, format string, args ...any) {
	tb.Helper()
	if os.Getenv("CI") != "" {
		tb.Fatalf(format, args...)
	}
	tb.Skipf(format, args...)
}
