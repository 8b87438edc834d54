package nftables

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/eclusa-lb/eclusa/lb"
)

// settle is how long the table stays after connections were cut, so that it
// answers what their ends send.
const settle = 200 * time.Millisecond

// Shutdown ends the engine and leaves everything in the kernel as it is: traffic
// goes on, and the next process takes over. What nobody does meanwhile is to react
// to members that fail. Withdraw is for an end for good.
func (e *Engine) Shutdown(context.Context) error {
	e.end()
	return nil
}

// ServesOn tells that the kernel goes on after Shutdown.
func (e *Engine) ServesOn() bool { return true }

// end stops the keeper and closes what is open.
func (e *Engine) end() {
	e.mu.Lock()
	if !e.closed {
		e.closed = true
		close(e.quit)
	}
	e.mu.Unlock()
	e.keeper.Wait()
	e.mu.Lock()
	e.closeSockets()
	e.mu.Unlock()
	e.counting.Lock()
	e.census.close()
	e.counting.Unlock()
}

// Withdraw refuses new connections at once, lets the open ones go on until ctx
// ends, cuts them, and deletes the engine's table. The engine is of no use
// afterwards.
func (e *Engine) Withdraw(ctx context.Context) error {
	started, err := e.refuseAll()
	if err != nil || !started {
		e.end()
		return err
	}
	defer e.end()
	tick := time.NewTicker(sweepGrain)
	defer tick.Stop()
	for e.busy() && ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if err := remove(e.rules, e.tracking, e.raw, e.log); err != nil {
		return err
	}
	_, err = e.direct.steering.prune(nil, true)
	return err
}

// refuseAll leaves no route a member. It returns false if the engine serves
// nothing.
func (e *Engine) refuseAll() (started bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.handed || e.rules == nil {
		return false, nil
	}
	e.closed = true
	close(e.quit)
	p := e.plan(lb.Table{Routes: e.state.table.Routes}, e.own, time.Now())
	if err := e.carryOut(p); err != nil {
		return true, fmt.Errorf("withdraw: %w", err)
	}
	e.state = p.next
	return true, nil
}

// busy tells whether there are open connections.
func (e *Engine) busy() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	open := false
	err := e.tracking.flows(func(f *flow) { open = open || f.open() })
	if err == nil && !open {
		_, err = e.rules.readFlows(func(f directFlow) { open = open || f.open() })
	}
	return err != nil || open
}

// Cleanup deletes what an engine has left in the kernel, puts back ip rules and
// settings of links, and cuts the connections that still go through it. It tells
// whether there was anything.
func Cleanup(log *zap.Logger) (found bool, err error) {
	rules, err := dial()
	if err != nil {
		return false, err
	}
	defer rules.close()
	tracking, err := dial()
	if err != nil {
		return false, err
	}
	defer tracking.close()
	raw, err := openRaw()
	if err != nil {
		return false, err
	}
	defer raw.close()
	p, err := rules.present()
	if err != nil {
		return false, err
	}
	var s steering
	defer s.close()
	if s.settings, err = rules.readSettings(); err != nil {
		return false, err
	}
	if p.table {
		if err := remove(rules, tracking, raw, log); err != nil {
			return true, err
		}
	}
	steered, err := s.prune(nil, true)
	return p.table || steered, err
}

// remove takes no connection any more, cuts those that are open, and deletes the
// table.
func remove(rules, tracking *socket, raw *raw, log *zap.Logger) error {
	p, err := rules.present()
	if err != nil || !p.table {
		return err
	}
	if err := takeNobody(rules, p); err != nil {
		return err
	}
	var gone []flow
	if err := tracking.flows(func(f *flow) { gone = append(gone, *f) }); err != nil {
		return err
	}
	if err := tracking.forget(gone); err != nil {
		return err
	}
	cut, err := buryAll(rules, raw)
	if err != nil {
		return err
	}
	for i := range gone {
		if f := &gone[i]; f.protocol == protocolNumber(lb.TCP) && f.open() && f.replied() {
			raw.provoke(f, true)
			cut++
		}
	}
	if cut > 0 {
		log.Info("connections are reset, since the engine is withdrawn", zap.Int("connections", cut))
		wait := time.NewTimer(settle)
		defer wait.Stop()
		<-wait.C
	}
	w := newBatch()
	w.deleteTable()
	return rules.commit(w)
}
