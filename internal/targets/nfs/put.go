package nfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/disko/backupd/internal/store"
)

// cleanupTimeout bounds the removal of a temporary file after a cancel.
const cleanupTimeout = 2 * time.Second

// temporary is a file in tmp/.
type temporary struct {
	node
	dir  handle // of tmp/
	name string
	made bool // or may be
}

// Put implements store.Putter.
func (t *Target) Put(ctx context.Context, key string, data []byte) error {
	var tmp temporary
	err := t.do(ctx, "write", key, func(s *session) error {
		tmp = newTemporary()
		err := t.put(ctx, s, &tmp, key, data)
		// That it cannot be removed is no reason to say that there is no object:
		// tidy will do it.
		if tmp.made && s.remove(tmp.dir, tmp.name) == nil {
			tmp.made = false
		}
		return err
	})
	if err != nil && tmp.made && ctx.Err() != nil {
		t.sweep(context.WithoutCancel(ctx), tmp)
	}
	return err
}

func newTemporary() temporary {
	var b [12]byte
	rand.Read(b[:])
	return temporary{name: hex.EncodeToString(b[:])}
}

// sweep removes what a cancelled Put left, if that is quickly done. If not, or
// if the server makes the file only now, a later Put will find it a day old.
func (t *Target) sweep(ctx context.Context, tmp temporary) {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	_ = t.pool.run(ctx, func(s *session) error { return s.remove(tmp.dir, tmp.name) })
}

func (t *Target) put(ctx context.Context, s *session, tmp *temporary, key string, data []byte) error {
	if _, err := s.walk(key); err == nil {
		return store.ErrExist // before its content is sent for nothing
	} else if !absent(err) {
		return err
	}
	if err := t.fill(s, tmp, data); err != nil {
		if absent(err) {
			return s.gone(err)
		}
		return err
	}
	dir, name := split(key)
	parent, err := s.makeDirs(dir)
	if err != nil {
		return err
	}
	return t.place(ctx, s, tmp, parent, name, key)
}

// fill makes a temporary file of data that is on stable storage.
func (t *Target) fill(s *session, tmp *temporary, data []byte) error {
	dir, err := s.makeDir(s.export.dir, tmpDir)
	if err != nil {
		return err
	}
	tmp.dir, tmp.made = dir, true
	if tmp.node, err = s.create(dir, tmp.name, fileMode); err != nil {
		return err
	}
	if err := s.write(tmp.handle, data); err != nil {
		return err
	}
	if tmp.attributes, err = s.getattr(tmp.handle); err != nil {
		return err
	}
	if tmp.size != uint64(len(data)) {
		return fmt.Errorf("the server has %d of %d bytes, and said that it has all", tmp.size, len(data))
	}
	if t.tidy.CompareAndSwap(false, true) {
		s.tidy(dir, tmp.mtime)
	}
	return nil
}

// tidy removes temporary files, and reservations, that are a day older than
// one just written, by the server's clock alone.
func (s *session) tidy(tmp handle, now time.Time) {
	entries, err := s.readdir(tmp)
	if err != nil {
		return
	}
	for _, e := range entries {
		if now.Sub(e.mtime) <= leftoverAge {
			continue
		}
		// Litter that may not be removed does no harm.
		if e.kind == kindDir {
			_ = s.rmdir(tmp, e.name)
		} else {
			_ = s.remove(tmp, e.name)
		}
	}
}
