// Package lbtest holds what tests of load balancers share: [TestEngine], the
// behaviour that every [lb.Engine] must show, and two fakes, [FakeEngine] and
// [FakeBalancer], that keep the contracts of package lb in memory.
//
// Only tests may import it, since it imports testing. Nothing in it starts a
// goroutine that outlives the test, and everything that waits does so on
// channels and timers, so that the fakes work in a bubble of testing/synctest.
package lbtest
