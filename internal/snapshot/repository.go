// Package snapshot is backupd's engine: it takes, lists, restores, exports,
// compares and verifies snapshots of trees of files on a target.
//
// Invariants: nothing on a target is ever overwritten; a snapshot exists if
// and only if its manifest does, and that is written after all it needs; what
// is read from a target is not believed before its checksum was computed.
//
// The package knows neither Docker, nor any kind of target, nor configuration.
package snapshot

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
)

// Keys of a repository's own objects.
const (
	markerKey        = "backupd.json"
	restoreScriptKey = "restore.sh"
	restoreNotesKey  = "RESTORE.md"
)

//go:embed restore.sh
var restoreScript []byte

//go:embed RESTORE.md
var restoreNotes []byte

// marker is the object that says what a target is.
type marker struct {
	Format     int         `json:"format"`
	ID         string      `json:"id"`
	Created    time.Time   `json:"created"`
	Encryption *encryption `json:"encryption,omitempty"`
}

// encryption says how a repository is encrypted; it holds nothing secret.
type encryption struct {
	Scheme   string `json:"scheme"`   // "age"
	Overhead int64  `json:"overhead"` // bytes before an object's content: restore.sh compares sizes
}

// Repository is a target that holds snapshots.
type Repository struct {
	ID    string
	store store.Reader // reads what is inside, where it is encrypted
	keys  *sealed.Keys // nil: not encrypted
	cache *cache
	trust *trust
	now   func() time.Time
	// notice is told what a caller should know beside a result.
	notice func(text string)
	// uptime is the clock that nobody can set; broken has rules that a test takes out.
	uptime func() (boot string, since time.Duration)
	broken broken
}

// Options are a repository's settings on this machine.
type Options struct {
	// CacheDir keeps copies of indexes; empty for none. It may be lost at any time.
	CacheDir string
	// TrustDir keeps what this machine has seen of encrypted repositories, to
	// notice one that was exchanged or set back; empty for none.
	TrustDir string
	// Credentials open an encrypted repository; nil for one that is not.
	Credentials *Credentials
	// Notice, where set, is told what is worth knowing beside a result: that
	// the latest snapshot is not the newest, say.
	Notice func(text string)
	// Now is the clock; time.Now where nil.
	Now func() time.Time
}

// Open opens the repository on a target. ErrNoRepository where the target is
// empty, ErrForeign where it holds something else.
func Open(ctx context.Context, st store.Reader, o Options) (*Repository, error) {
	data, err := st.Get(ctx, markerKey, 0, -1)
	if errors.Is(err, store.ErrNotExist) {
		return nil, o.notRepository(ctx, st)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", st.Location(), err)
	}
	var version struct {
		Format int `json:"format"`
	}
	if json.Unmarshal(data, &version) == nil && version.Format > FormatVersion {
		return nil, fmt.Errorf("open %s: %w", st.Location(), &NewerFormatError{What: "the repository", Format: version.Format})
	}
	var m marker
	if err := strictJSON(data, &m); err != nil || !validID(m.ID) || m.Format != FormatVersion || m.Encryption != nil && m.Encryption.Scheme != "age" {
		return nil, fmt.Errorf("open %s: %w: its marker %s cannot be read; restore that file from another copy of the repository, or see RESTORE.md", st.Location(), ErrDamaged, markerKey)
	}
	keys, err := o.Credentials.unlock(ctx, st, &m)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", st.Location(), err)
	}
	return newRepository(st, m.ID, keys, o)
}

func newRepository(st store.Reader, id string, keys *sealed.Keys, o Options) (*Repository, error) {
	r := &Repository{ID: id, store: st, now: clock(o.Now), cache: newCache(o.CacheDir, id), trust: newTrust(o.TrustDir, id), notice: o.Notice, uptime: uptime}
	if r.notice == nil {
		r.notice = func(string) {}
	}
	var err error
	if keys == nil {
		err = newTrust(o.TrustDir, "").wasOther(st.Location(), "an unencrypted one lies there now")
	} else {
		err = r.use(st, keys)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", st.Location(), err)
	}
	return r, nil
}

// use reads and writes the repository with keys from now on.
func (r *Repository) use(st store.Reader, keys *sealed.Keys) error {
	if err := r.trust.check(keys, st.Location()); err != nil {
		return err
	}
	inside, err := sealed.NewReader(st, keys)
	if err != nil {
		return err
	}
	r.store, r.keys = inside, keys
	return nil
}

// writer is the store that snapshots are written through.
func (r *Repository) writer(w store.Writer) (store.Writer, error) {
	if r.keys == nil {
		return w, nil
	}
	return sealed.NewWriter(w, r.keys)
}

// Encrypted says whether the repository is encrypted.
func (r *Repository) Encrypted() bool { return r.keys != nil }

// Close closes the cache's files.
func (r *Repository) Close() { r.cache.close() }

// Location is where the repository is, for messages.
func (r *Repository) Location() string { return r.store.Location() }

// notRepository tells an empty target from somebody else's, and from one that was emptied.
func (o *Options) notRepository(ctx context.Context, st store.Reader) error {
	loc := st.Location()
	for info, err := range st.List(ctx, "") {
		if err != nil {
			return fmt.Errorf("open %s: %w", loc, err)
		}
		if isLockKey(info.Key) {
			continue // a first backup was killed before it wrote the marker
		}
		return fmt.Errorf("%w: %s holds other data (%s) and no %s; nothing was written there: name an empty directory, or one that backupd made", ErrForeign, loc, info.Key, markerKey)
	}
	if err := newTrust(o.TrustDir, "").wasOther(loc, "nothing lies there now: it was deleted"); err != nil {
		return fmt.Errorf("open %s: %w", loc, err)
	}
	return fmt.Errorf("%w in %s: the first `backupd backup` to it creates one", ErrNoRepository, loc)
}

// Ensure opens the repository on a target, and creates it where the target is empty.
func Ensure(ctx context.Context, st store.Writer, o Options) (*Repository, error) {
	r, err := Open(ctx, st, o)
	if errors.Is(err, ErrNoRepository) {
		if r, err = create(ctx, st, o); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	return r, writeExtras(ctx, st)
}

// writeExtras puts what restores without backupd beside the data. A run that
// was killed after the marker leaves this to the next.
func writeExtras(ctx context.Context, st store.Writer) error {
	for key, data := range extras() {
		if _, err := st.Stat(ctx, key); err == nil {
			continue
		} else if !errors.Is(err, store.ErrNotExist) {
			return fmt.Errorf("open %s: %w", st.Location(), err)
		}
		if err := st.Put(ctx, key, data); err != nil && !errors.Is(err, store.ErrExist) {
			return fmt.Errorf("create repository in %s: %w", st.Location(), err)
		}
	}
	return nil
}

// extras are the objects that restore without backupd, as they are written.
func extras() map[string][]byte {
	return map[string][]byte{
		restoreScriptKey: withSum(restoreScriptKey, restoreScript),
		restoreNotesKey:  withSum(restoreNotesKey, restoreNotes),
	}
}

// withSum ends a text with a line of its checksum, so that damage is known to
// versions with another text.
func withSum(key string, text []byte) []byte {
	return fmt.Appendf(slices.Clip(text), "# sha256 %x\n", sha256.Sum256(append([]byte(key+"\n"), text...)))
}

// sumFits says whether data is what withSum returned for some text.
func sumFits(key string, data []byte) bool {
	i := bytes.LastIndex(data, []byte("\n# sha256 ")) + 1
	return i > 0 && bytes.Equal(withSum(key, data[:i]), data)
}

func newMarker(o Options) marker {
	return marker{Format: FormatVersion, ID: randomID(), Created: clock(o.Now)().UTC().Truncate(time.Second)}
}

// write puts the marker: from then on the target is a repository.
func (m *marker) write(ctx context.Context, st store.Putter) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return st.Put(ctx, markerKey, append(data, '\n'))
}

func create(ctx context.Context, st store.Writer, o Options) (*Repository, error) {
	m := newMarker(o)
	keys, err := o.Credentials.create(ctx, st, &m)
	if err != nil {
		return nil, fmt.Errorf("create repository in %s: %w", st.Location(), err)
	}
	err = m.write(ctx, st)
	if errors.Is(err, store.ErrExist) {
		// Another first backup was faster: join its repository.
		return Open(ctx, st, o)
	}
	if err != nil {
		return nil, fmt.Errorf("create repository in %s: %w", st.Location(), err)
	}
	return newRepository(st, m.ID, keys, o)
}

func randomID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

func newRun() string { return randomID()[:16] }

func validID(s string) bool {
	return len(s) == 32 && pack.ValidRun(s[:16]) && pack.ValidRun(s[16:])
}

// Keys of a stack's objects. Names were checked by CheckName.

func snapshotsPrefix(stack string) string { return "stacks/" + stack + "/snapshots/" }

func snapshotKey(stack string, seq uint64, id string) string {
	return fmt.Sprintf("%s%08d-%s", snapshotsPrefix(stack), seq, id)
}

func volumesPrefix(stack string) string { return "stacks/" + stack + "/volumes/" }

func packKey(stack, volume string, n pack.Name) string {
	return "stacks/" + stack + "/volumes/" + volume + "/packs/" + n.String()
}

func indexKey(stack, volume string, n pack.Name) string {
	return "stacks/" + stack + "/volumes/" + volume + "/index/" + n.String()
}

// packName reads the name of a pack, of data or index, out of its key.
func packName(key string) (pack.Name, error) {
	return pack.ParseName(key[strings.LastIndexByte(key, '/')+1:])
}

func isIndexKey(key string) bool { return strings.Contains(key, "/index/") }

func runKey(stack, run string, k int) string {
	return fmt.Sprintf("stacks/%s/runs/%s.%d", stack, run, k)
}

func condemnedPrefix(stack string) string { return "stacks/" + stack + "/condemned/" }

// maxSequence bounds sequence numbers. Whoever can write to a target could else
// plant a key with a number behind which none comes.
const maxSequence = 1 << 53

// splitSnapshotKey reads stack, sequence and id out of a manifest's key.
func splitSnapshotKey(key string) (stack string, seq uint64, id string, ok bool) {
	parts := strings.Split(key, "/")
	if len(parts) != 4 || parts[0] != "stacks" || parts[2] != "snapshots" {
		return "", 0, "", false
	}
	num, id, ok := strings.Cut(parts[3], "-")
	if !ok || !validID(id) || CheckName("stack", parts[1]) != nil {
		return "", 0, "", false
	}
	if _, err := fmt.Sscanf(num, "%d", &seq); err != nil || seq > maxSequence || snapshotKey(parts[1], seq, id) != key {
		return "", 0, "", false
	}
	return parts[1], seq, id, true
}
