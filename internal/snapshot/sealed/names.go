package sealed

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/store"
)

// Names in keys. A stack's directory is named after a keyed hash of the stack,
// a volume's after one of stack and volume: the same name has the same hash
// for whoever has the key, and tells nobody else anything, nor that two stacks
// have a volume of one name.

func (k *Keys) stackName(stack string) string { return k.hash("stack", stack) }

func (k *Keys) volumeName(stack, volume string) string { return k.hash("volume", stack, volume) }

func (k *Keys) hash(parts ...string) string {
	h := hmac.New(sha256.New, k.NameKey)
	h.Write([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// nameObject is the object in a stack's or a volume's directory that holds its name, encrypted.
const nameObject = "name"

// foreign says whether an object lies where this repository writes none.
func foreign(key string) bool {
	p, ok := split(key)
	return ok && (!isHash(p.stack) || p.volume != "" && !isHash(p.volume))
}

func isHash(name string) bool {
	return len(name) == 32 && pack.ValidRun(name[:16]) && pack.ValidRun(name[16:])
}

// path is a key below stacks/, taken apart.
type path struct {
	stack, volume string
	rest          string // after them
}

// split takes a key apart: stacks/<stack>[/volumes/<volume>][/rest].
func split(key string) (p path, ok bool) {
	rest, ok := strings.CutPrefix(key, "stacks/")
	if !ok || rest == "" {
		return path{}, false
	}
	p.stack, p.rest, _ = strings.Cut(rest, "/")
	if v, found := strings.CutPrefix(p.rest, "volumes/"); found && v != "" {
		p.volume, p.rest, _ = strings.Cut(v, "/")
	}
	return p, true
}

func (p path) join() string {
	s := "stacks/" + p.stack
	if p.volume != "" {
		s += "/volumes/" + p.volume
	}
	if p.rest != "" {
		s += "/" + p.rest
	}
	return s
}

// Hide returns the key that an object really has.
func (k *Keys) Hide(key string) string {
	p, ok := split(key)
	if !ok {
		return key
	}
	if p.volume != "" {
		p.volume = k.volumeName(p.stack, p.volume)
	}
	p.stack = k.stackName(p.stack)
	return p.join()
}

// show is the reverse of hide: it looks up names that are not known yet. One
// that cannot be read stays a hash, and the manifests below it do not verify.
func (s *Reader) show(ctx context.Context, key string) (string, error) {
	p, ok := split(key)
	if !ok {
		return key, nil
	}
	stack := p.stack
	name, err := s.name(ctx, "stacks/"+stack, stack, s.k.stackName)
	if err != nil {
		return "", err
	}
	p.stack = name
	if p.volume != "" {
		p.volume, err = s.name(ctx, "stacks/"+stack+"/volumes/"+p.volume, p.volume, func(v string) string { return s.k.volumeName(name, v) })
	}
	return p.join(), err
}

func (s *Reader) name(ctx context.Context, dir, hash string, hashOf func(string) string) (string, error) {
	s.mu.Lock()
	name, ok := s.names[hash]
	s.mu.Unlock()
	if ok {
		return name, nil
	}
	name = hash
	if len(s.ids) > 0 {
		said, err := s.readName(ctx, dir)
		switch {
		case err == nil && hashOf(said) == hash:
			name = said
		case err != nil && !errors.Is(err, pack.ErrCorrupt) && !errors.Is(err, ErrForged) && !errors.Is(err, store.ErrNotExist):
			return "", err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if known, ok := s.names[hash]; ok { // somebody used it meanwhile
		return known, nil
	}
	s.names[hash] = name
	return name, nil
}

// nameLen is the length of a name object's content: the length of a name is
// nobody's business. The rest is filled with line feeds, which a shell drops.
const nameLen = 128

func padName(name string) []byte {
	return append([]byte(name), bytes.Repeat([]byte{'\n'}, max(0, nameLen-len(name)))...)
}

// readName reads what a name object says.
func (s *Reader) readName(ctx context.Context, dir string) (string, error) {
	data, err := s.st.Get(ctx, dir+"/"+nameObject, 0, s.sealedSize(nameLen))
	if errors.Is(err, store.ErrShort) {
		return "", corrupt(err)
	}
	if err != nil {
		return "", err
	}
	data, err = decrypt(spans{{0, data}}, int64(len(data)), 0, nameLen, s.ids...)
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(data), "\n"), nil
}

// secret says whether an object's content is encrypted. What is not, tells
// sizes, counts and times: intents, and what forget and prune note, by keys.
func (p path) secret() bool {
	return p.volume != "" || p.rest == nameObject || strings.HasPrefix(p.rest, "snapshots/") || strings.HasPrefix(p.rest, "drills/")
}

// signed says whether an object is a manifest.
func (p path) signed() bool { return p.volume == "" && strings.HasPrefix(p.rest, "snapshots/") }

// CheckNames reads the objects that tell names, and yields each with what is
// wrong with it, or nil; an object of a stack or volume that has none is named once.
func (s *Reader) CheckNames(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		dirs := map[string]int64{} // of stacks and volumes: how large the object with their name is
		for info, err := range s.st.List(ctx, "stacks/") {
			if err != nil {
				yield("stacks/", err)
				return
			}
			p, ok := split(info.Key)
			if !ok || foreign(info.Key) {
				continue
			}
			for _, dir := range []string{path{stack: p.stack}.join(), path{stack: p.stack, volume: p.volume}.join()} {
				if info.Key == dir+"/"+nameObject {
					dirs[dir] = info.Size
				} else if _, seen := dirs[dir]; !seen {
					dirs[dir] = -1
				}
			}
		}
		for _, dir := range slices.Sorted(maps.Keys(dirs)) {
			key, err := dir+"/"+nameObject, error(nil)
			switch size := dirs[dir]; size {
			case -1:
				err = fmt.Errorf("%w: is missing", pack.ErrCorrupt)
			case s.sealedSize(nameLen):
				err = s.checkName(ctx, dir)
			default:
				err = fmt.Errorf("%w: has %d bytes instead of %d", pack.ErrCorrupt, size, s.sealedSize(nameLen))
			}
			if !yield(key, err) {
				return
			}
		}
	}
}

func (s *Reader) checkName(ctx context.Context, dir string) error {
	said, err := s.readName(ctx, dir)
	if err != nil {
		return err
	}
	p, _ := split(dir)
	want := s.k.stackName(said)
	if p.volume != "" {
		stack, err := s.name(ctx, path{stack: p.stack}.join(), p.stack, s.k.stackName)
		if err != nil {
			return err
		}
		want, p.stack = s.k.volumeName(stack, said), p.volume
	}
	if want != p.stack {
		return fmt.Errorf("%w: it is another's name", ErrForged)
	}
	return nil
}
