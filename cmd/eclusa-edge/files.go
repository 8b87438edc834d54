package main

import (
	"golang.org/x/sys/unix"

	"go.uber.org/zap"
)

// raiseFileLimit lets the program open as many files as it may.
func raiseFileLimit(log *zap.Logger) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		log.Warn("the limit of open files cannot be read", zap.Error(err))
		return
	}
	before := limit.Cur
	if limit.Cur < limit.Max {
		limit.Cur = limit.Max
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			limit.Cur = before
			log.Warn("the limit of open files cannot be raised", zap.Uint64("limit", before), zap.Uint64("most", limit.Max), zap.Error(err))
		}
	}
	// A connection has a socket on either side.
	log.Info("limit of open files; raise it (LimitNOFILE of systemd) for more connections",
		zap.Uint64("files", limit.Cur), zap.Uint64("before", before), zap.Uint64("connectionsThatFit", limit.Cur/2-limit.Cur/32))
}
