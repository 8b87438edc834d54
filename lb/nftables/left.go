package nftables

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Left tells whether an engine has left something in the kernel, by which traffic goes
// on. An error tells that this is not known, or, if there is something, that [Cleanup]
// could not take it away.
func Left() (found bool, err error) {
	steered, steeredErr := steersAnything()
	rules, err := dial()
	if err != nil {
		return steered, errors.Join(err, steeredErr)
	}
	defer rules.close()
	p, err := rules.present()
	if err != nil {
		return steered, errors.Join(err, steeredErr)
	}
	if !p.table && !steered {
		return false, steeredErr
	}
	raw, err := openRaw()
	if err != nil {
		return true, err
	}
	raw.close()
	return true, nil
}

// steersAnything tells whether the kernel has routing rules of an engine.
func steersAnything() (bool, error) {
	var s steering
	defer s.close()
	if err := s.open(); err != nil {
		return false, err
	}
	for _, v := range versions {
		present, err := s.rules(v)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // the machine has no such family
		}
		if err != nil || present.own() {
			return err == nil, err
		}
	}
	return false, nil
}

// takeNobody lets the table take no connection any more: whoever comes reaches this
// machine itself, which may serve in another way by now.
func takeNobody(rules *socket, p *present) error {
	w := newBatch()
	for _, name := range []string{"prerouting", "output", "direct", "stranded"} {
		if _, there := p.chains[name]; there {
			w.flushChain(name)
		}
	}
	return rules.commit(w)
}
