package sealed

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/disko/backupd/internal/snapshot/pack"
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

// secret says whether an object's content is encrypted. What is not, tells
// sizes, counts and times: intents, and what forget and prune note, by keys.
func (p path) secret() bool {
	return p.volume != "" || p.rest == nameObject || strings.HasPrefix(p.rest, "snapshots/")
}

// signed says whether an object is a manifest.
func (p path) signed() bool { return p.volume == "" && strings.HasPrefix(p.rest, "snapshots/") }

// CheckNames reads the objects that tell names, and yields each with what is
// wrong with it, or nil; an object of a stack or volume that has none is named once.
func (s *Reader) CheckNames(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		dirs := map[string]bool{} // of stacks and volumes; true when their name was seen
		for info, err := range s.st.List(ctx, "stacks/") {
			if err != nil {
				yield("stacks/", err)
				return
			}
			p, ok := split(info.Key)
			if !ok {
				continue
			}
			for _, dir := range []string{path{stack: p.stack}.join(), path{stack: p.stack, volume: p.volume}.join()} {
				dirs[dir] = dirs[dir] || info.Key == dir+"/"+nameObject
			}
		}
		for _, dir := range slices.Sorted(maps.Keys(dirs)) {
			key, err := dir+"/"+nameObject, error(nil)
			if !dirs[dir] {
				err = fmt.Errorf("%w: is missing", pack.ErrCorrupt)
			} else {
				err = s.checkName(ctx, dir)
			}
			if !yield(key, err) {
				return
			}
		}
	}
}

func (s *Reader) checkName(ctx context.Context, dir string) error {
	data, err := s.get(ctx, dir+"/"+nameObject, 0, -1)
	if err != nil {
		return err
	}
	p, _ := split(dir)
	want := s.k.stackName(string(data))
	if p.volume != "" {
		stack, err := s.name(ctx, path{stack: p.stack}.join(), p.stack, s.k.stackName)
		if err != nil {
			return err
		}
		want, p.stack = s.k.volumeName(stack, string(data)), p.volume
	}
	if want != p.stack {
		return fmt.Errorf("%w: it is another's name", ErrForged)
	}
	return nil
}
