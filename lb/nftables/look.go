package nftables

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// currentGeneration is the number of transactions of anybody.
func (s *socket) currentGeneration() (uint32, error) {
	w := &buffer{}
	at := w.begin(nftablesKind|unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, s.next(), unix.AF_UNSPEC, 0)
	w.end(at)
	if err := s.send(w.b); err != nil {
		return 0, err
	}
	var generation uint32
	var fault error
	err := s.until(s.seq, func(_ uint8, body []byte) { generation = be32(attribute(body, unix.NFTA_GEN_ID)) }, func(err error) { fault = err })
	return generation, errors.Join(err, fault)
}

// committed notes the generation that a transaction of this engine has made.
func (e *Engine) committed(chains bool) {
	now, err := e.rules.currentGeneration()
	if err != nil || now != e.generation+1 {
		e.dirty = true // somebody else was there too
	}
	e.generation = now
	if chains {
		if e.digest, err = e.rules.rulesDigest(); err != nil {
			e.inForce = false
		}
	}
}

// verifyShare is the share of its time that the engine spends at most on comparing
// elements, when others change their own tables all the time.
const verifyShare = 50

// look finds out whether somebody else has changed the engine's table. Afterwards
// inForce tells.
func (e *Engine) look() error {
	now, err := e.rules.currentGeneration()
	if err != nil {
		return err
	}
	if now != e.generation {
		present, err := e.rules.present()
		if err != nil {
			return err
		}
		e.generation, e.dirty = now, true
		if !present.whole(e.sets(e.state), e.state.chains) || present.digest != e.digest {
			e.log.Warn("somebody has changed or deleted the kernel's table of this engine; it is restored", zap.String("table", "inet "+TableName))
			e.inForce = false
		}
	}
	if e.dirty && time.Since(e.verified) >= verifyShare*e.verifyCost {
		e.inForce = false // only what is wrong is sent
	}
	return nil
}

// whole tells whether all sets and chains are there.
func (p *present) whole(sets []*set, chains []*chain) bool {
	for _, s := range sets {
		if p.sets[s.name] == nil {
			return false
		}
	}
	for _, c := range chains {
		if _, ok := p.chains[c.name]; !ok {
			return false
		}
	}
	return p.table
}

// rulesDigest tells rules from others.
func (s *socket) rulesDigest() (string, error) {
	h := sha256.New()
	err := s.list(unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, func(body []byte) {
		if text(attribute(body, unix.NFTA_RULE_TABLE)) != TableName {
			return
		}
		h.Write(attribute(body, unix.NFTA_RULE_CHAIN))
		h.Write(attribute(body, unix.NFTA_RULE_EXPRESSIONS))
	})
	if err != nil {
		return "", fmt.Errorf("list rules: %w", err)
	}
	return string(h.Sum(nil)), nil
}
