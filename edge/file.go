package edge

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A generation is one of the contents that a file may be found with.
type generation int

const (
	none     generation = iota // neither can be read
	current                    // what was saved last
	previous                   // what was saved before that; the last save is lost
)

// A file is replaced as a whole: whoever reads it finds the old content or the
// new one, after a crash at any moment too. The content before is kept beside it.
type file struct {
	path string
	// before is called ahead of each step of a save; its error is the step's.
	// Only tests set it.
	before func(step) error
}

// step is a part of a save between which a crash must do no harm.
type step string

const (
	stepCreate  step = "create"
	stepWrite   step = "write"
	stepSync    step = "sync"
	stepUnlink  step = "unlink"
	stepKeep    step = "keep"
	stepRename  step = "rename"
	stepSyncDir step = "sync directory"
	stepDone    step = "done"
)

var steps = []step{stepCreate, stepWrite, stepSync, stepUnlink, stepKeep, stepRename, stepSyncDir, stepDone}

func (f file) previous() string  { return f.path + ".previous" }
func (f file) temporary() string { return f.path + ".new" }

// load reads the current content, or else the previous one. accept says whether
// a content can be used. The error tells what was wrong with generations that
// were passed over; it is nil when the file was never written.
func (f file) load(accept func([]byte) error) (generation, error) {
	err := f.read(f.path, accept)
	if err == nil {
		return current, nil
	}
	prevErr := f.read(f.previous(), accept)
	if prevErr == nil {
		return previous, err
	}
	if errors.Is(err, fs.ErrNotExist) && errors.Is(prevErr, fs.ErrNotExist) {
		return none, nil
	}
	return none, errors.Join(err, prevErr)
}

func (f file) read(path string, accept func([]byte) error) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := accept(data); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	return nil
}

// save replaces the content durably. On error the file holds the old content or
// the new one, and what holds it may not be durable.
func (f file) save(data []byte) error {
	if err := f.replace(data); err != nil {
		return fmt.Errorf("save %s: %w", f.path, err)
	}
	return nil
}

func (f file) replace(data []byte) error {
	if err := f.writeTemporary(data); err != nil {
		// What is left of it would take the room that the next try needs.
		_ = os.Remove(f.temporary())
		return err
	}
	if err := f.keepPrevious(); err != nil {
		return err
	}
	if err := f.at(stepRename); err != nil {
		return err
	}
	if err := os.Rename(f.temporary(), f.path); err != nil {
		return err
	}
	if err := f.at(stepSyncDir); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(f.path)); err != nil {
		return err
	}
	return f.at(stepDone)
}

func (f file) at(s step) error {
	if f.before == nil {
		return nil
	}
	return f.before(s)
}

func (f file) writeTemporary(data []byte) (err error) {
	if err := f.at(stepCreate); err != nil {
		return err
	}
	t, err := os.OpenFile(f.temporary(), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	if err := f.at(stepWrite); err != nil {
		return err
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	if err := f.at(stepSync); err != nil {
		return err
	}
	return t.Sync()
}

// keepPrevious gives the current content its second name. The first one stays in
// place until the rename, so that there is no moment without a current file.
func (f file) keepPrevious() error {
	if err := f.at(stepUnlink); err != nil {
		return err
	}
	if _, err := os.Lstat(f.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := os.Remove(f.previous()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := f.at(stepKeep); err != nil {
		return err
	}
	err := os.Link(f.path, f.previous())
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		err = os.Rename(f.path, f.previous()) // a file system without hard links
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockFile takes the lock of a file, which it makes, or fails at once if another
// process has it. The lock ends when the file is closed.
func lockFile(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
