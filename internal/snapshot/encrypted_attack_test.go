package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// fort is an encrypted repository with two stacks of two volumes, three
// snapshots of the first and one of the second, and its owner's state directory.
type fort struct {
	t      *testing.T
	root   string
	store  *storetest.Memory
	owner  *Credentials
	agent  string
	keys   *sealed.Keys
	ids    []string // of stack shop
	other  string   // of stack wiki
	volume string
}

func newFort(t *testing.T) *fort {
	t.Helper()
	believeStats(t)
	f := &fort{t: t, root: fastDir(t), store: storetest.NewMemory()}
	f.owner, _ = newIdentity(t)
	f.volume = filepath.Join(f.root, "volume")
	if err := os.Mkdir(f.volume, 0o755); err != nil {
		t.Fatal(err)
	}
	r, agent, err := Init(context.Background(), f.store, f.options())
	if err != nil {
		t.Fatal(err)
	}
	f.agent, f.keys = agent, r.keys
	for i := range 3 {
		f.write(fmt.Sprint("state ", i))
		f.ids = append(f.ids, f.backup(f.store, "shop").ID)
	}
	f.other = f.backup(f.store, "wiki").ID
	f.wantClean(f.store)
	return f
}

func (f *fort) write(text string) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.volume, "file"), append([]byte(text), noise(uint64(len(text)), 200_000)...), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// options are the owner's, at home; strangers have seen nothing before.
func (f *fort) options() Options {
	return Options{Credentials: f.owner, TrustDir: filepath.Join(f.root, "trust")}
}

func (f *fort) stranger() Options { return Options{Credentials: f.owner} }

func (f *fort) open(st store.Reader, o Options) *Repository {
	f.t.Helper()
	r, err := Open(context.Background(), st, o)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(r.Close)
	return r
}

func (f *fort) backup(st store.Writer, stack string) *Summary {
	f.t.Helper()
	s, err := f.open(st, f.options()).Backup(context.Background(), st, BackupOptions{Stack: stack, Volumes: []Source{{Name: "data", Path: f.volume}, {Name: "more", Path: f.volume}}})
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func (f *fort) verify(st store.Reader) *Verified {
	f.t.Helper()
	r := f.open(st, f.stranger())
	list, err := r.List(context.Background(), "")
	if err != nil {
		f.t.Fatal(err)
	}
	v, err := r.Verify(context.Background(), list, true, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fort) wantClean(st store.Reader) {
	f.t.Helper()
	for _, d := range f.verify(st).Damage {
		f.t.Errorf("verify: %s", d)
	}
}

// manifest is the real key of a snapshot's manifest.
func (f *fort) manifest(stack string, seq uint64, id string) string {
	return f.keys.Hide(snapshotKey(stack, seq, id))
}

// wantForged makes sure that a snapshot by that id is refused as forged, that
// verify says so, and that the latest is another.
func (f *fort) wantForged(st *storetest.Memory, stack string, seq uint64, id, latest string) {
	f.t.Helper()
	r := f.open(st, f.stranger())
	list, err := r.List(context.Background(), stack)
	if err != nil {
		f.t.Fatal(err)
	}
	found := false
	for _, l := range list {
		if l.Sequence == seq && l.ID == id {
			found = true
			if !errors.Is(l.Err, sealed.ErrForged) {
				f.t.Errorf("the forged snapshot is listed with %v", l.Err)
			}
		}
	}
	if !found {
		f.t.Error("the forged snapshot is not even listed")
	}
	if m, err := r.Find(context.Background(), stack, "latest"); err != nil || m.ID() != latest {
		f.t.Errorf("latest is %v, %v; want %.8s", m, err, latest)
	}
	said := false
	for _, d := range f.verify(st).Damage {
		said = said || d.Snapshot == id && strings.Contains(d.What, "not written by this repository's keys")
	}
	if !said {
		f.t.Error("verify does not say so")
	}
}

func TestAReplayedManifestIsForged(t *testing.T) {
	f := newFort(t)
	f.store.SetBytes(f.manifest("shop", 9, f.ids[0]), f.store.Bytes(f.manifest("shop", 1, f.ids[0])))
	f.wantForgedReplay(9)
}

// wantForgedReplay: the replayed one bears the id of one that is there.
func (f *fort) wantForgedReplay(seq uint64) {
	f.t.Helper()
	f.wantForged(f.store, "shop", seq, f.ids[0], f.ids[2])
}

func TestAManifestMovedToAnotherStackIsForged(t *testing.T) {
	f := newFort(t)
	f.store.SetBytes(f.manifest("wiki", 9, f.ids[2]), f.store.Bytes(f.manifest("shop", 3, f.ids[2])))
	f.wantForged(f.store, "wiki", 9, f.ids[2], f.other)
	f.store.SetBytes(f.manifest("wiki", 3, f.ids[2]), f.store.Bytes(f.manifest("shop", 3, f.ids[2])))
	f.wantForged(f.store, "wiki", 3, f.ids[2], f.other)
}

func TestReorderedManifestsAreForged(t *testing.T) {
	f := newFort(t)
	one, three := f.manifest("shop", 1, f.ids[0]), f.manifest("shop", 3, f.ids[2])
	a, b := f.store.Bytes(one), f.store.Bytes(three)
	f.store.SetBytes(one, b)
	f.store.SetBytes(three, a)
	f.wantForged(f.store, "shop", 1, f.ids[0], f.ids[1])
	f.wantForged(f.store, "shop", 3, f.ids[2], f.ids[1])
	// Their names only: the numbers change places.
	st := f.store.Clone()
	st.SetBytes(f.manifest("shop", 3, f.ids[0]), a)
	st.SetBytes(f.manifest("shop", 1, f.ids[2]), b)
	st.Remove(one)
	st.Remove(three)
	f.wantForged(st, "shop", 3, f.ids[0], f.ids[1])
}

// A repository is its id: the same keys in another one sign nothing for this one.
func TestAManifestFromAnotherRepositoryWithTheSameKeysIsForged(t *testing.T) {
	f := newFort(t)
	twin := *f.keys
	twin.Repository = strings.Repeat("7", 32)
	st := storetest.NewMemory()
	w, err := sealed.NewWriter(st, &twin)
	if err != nil {
		t.Fatal(err)
	}
	m := &Manifest{Format: FormatVersion, Repository: f.keys.Repository, Stack: "shop", Sequence: 9, Run: newRun(), Trigger: "manual"}
	data, id, err := m.encode(pack.NewEncoder(pack.Dense))
	if err != nil {
		t.Fatal(err)
	}
	key := snapshotKey("shop", 9, id)
	if err := w.Put(context.Background(), key, data); err != nil {
		t.Fatal(err)
	}
	f.store.SetBytes(f.manifest("shop", 9, id), st.Bytes(twin.Hide(key)))
	f.wantForged(f.store, "shop", 9, id, f.ids[2])
}

// A copy of a whole target is the repository as it was; to a machine that saw it later, it is set back.
func TestAnOldCopyOfTheWholeTargetIsNoticed(t *testing.T) {
	f := newFort(t)
	old := f.store.Clone()
	f.write("state 4")
	f.backup(f.store, "shop")
	r := f.open(old, f.options())
	if _, err := r.Find(context.Background(), "shop", "latest"); !errors.Is(err, ErrSetBack) {
		t.Errorf("%v, want ErrSetBack", err)
	}
	if m, err := r.Find(context.Background(), "shop", f.ids[2][:8]); err != nil || m.ID() != f.ids[2] {
		t.Errorf("by its id: %v", err) // the way out that the error names
	}
	if _, err := f.open(old, f.stranger()).Find(context.Background(), "shop", "latest"); err != nil {
		t.Errorf("a stranger cannot know: %v", err)
	}
}

// forgeManifest makes up a manifest, encrypted to a recipient, with a
// signature by some key or none.
func forgeManifest(t *testing.T, recipient, repository string, sign func(key string, data []byte) []byte) (key string, object []byte, id string) {
	t.Helper()
	m := &Manifest{Format: FormatVersion, Repository: repository, Stack: "shop", Sequence: 9, Run: newRun(), Trigger: "manual"}
	data, id, err := m.encode(pack.NewEncoder(pack.Dense))
	if err != nil {
		t.Fatal(err)
	}
	key = snapshotKey("shop", 9, id)
	r, err := age.ParseX25519Recipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(sign(key, data)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return key, out.Bytes(), id
}

// Neither who knows the user's recipient nor who learned the repository's can make a snapshot.
func TestAManifestMadeUpByWhoKnowsARecipientOnlyIsForged(t *testing.T) {
	f := newFort(t)
	for name, recipient := range map[string]string{"the user's": recipientsOf(t, f.owner).RecipientNames[0], "the repository's": f.keys.Recipient} {
		for what, sign := range map[string]func(string, []byte) []byte{
			"unsigned": func(_ string, data []byte) []byte { return data },
			"signed by the attacker": func(_ string, data []byte) []byte {
				return append(append(data, 0x51, 0x2A, 0x4D, 0x18, 64, 0, 0, 0), noise(3, 64)...)
			},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				key, object, id := forgeManifest(t, recipient, f.keys.Repository, sign)
				st := f.store.Clone()
				st.SetBytes(f.keys.Hide(key), object)
				f.wantForged(st, "shop", 9, id, f.ids[2])
				// The next backup is not misled by it: it comes behind, with the true parent.
				f := *f
				f.store = st
				s := f.backup(st, "shop")
				if m, err := f.open(st, f.stranger()).Find(context.Background(), "shop", "latest"); err != nil || m.ID() != s.ID || m.Parent != f.ids[2] {
					t.Errorf("%v, %v", m, err)
				}
			})
		}
	}
}

// A planted number that nothing comes behind stops backups aloud, and hides none.
func TestAPlantedHighestNumberIsSaid(t *testing.T) {
	f := newFort(t)
	id := strings.Repeat("a", 32)
	for _, seq := range []uint64{1<<64 - 1, maxSequence + 1} {
		st := f.store.Clone()
		st.SetBytes(f.manifest("shop", seq, id), []byte("x"))
		if s := f.backup(st, "shop"); s.Sequence > 5 {
			t.Errorf("behind %d comes %d", seq, s.Sequence)
		}
	}
	st := f.store.Clone()
	st.SetBytes(f.manifest("shop", maxSequence, id), []byte("x"))
	_, err := f.open(st, f.stranger()).Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: f.volume}}})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
	// And what anybody may plant is nothing that this machine has seen.
	if _, err := f.open(f.store, f.options()).Find(context.Background(), "shop", "latest"); err != nil && !errors.Is(err, ErrSetBack) {
		t.Error(err)
	}
}

func TestPlantedNumbersAreNotRemembered(t *testing.T) {
	f := newFort(t)
	planted := f.manifest("shop", 77, strings.Repeat("a", 32))
	f.store.SetBytes(planted, []byte("x"))
	r := f.open(f.store, f.options())
	if _, err := r.List(context.Background(), "shop"); err != nil {
		t.Fatal(err)
	}
	b := &backupRun{r: r, o: BackupOptions{Stack: "shop", Notice: func(string) {}}}
	if seq, err := b.chooseParent(context.Background()); err != nil || seq != 78 {
		t.Fatalf("%d, %v", seq, err)
	}
	f.store.Remove(planted)
	if _, err := f.open(f.store, f.options()).Find(context.Background(), "shop", "latest"); err != nil {
		t.Errorf("after it is gone: %v", err)
	}
}

// packs returns the real keys of a volume's objects of one kind.
func (f *fort) packs(stack, volume, kind string) []string {
	var keys []string
	for _, key := range f.store.Keys() {
		if strings.HasPrefix(key, f.keys.Hide("stacks/"+stack+"/volumes/"+volume)+"/"+kind+"/") {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestPacksSwappedBetweenVolumesGiveNoWrongFile(t *testing.T) {
	f := newFort(t)
	for _, kind := range []string{"packs", "index"} {
		for i, a := range f.packs("shop", "data", kind) {
			b := f.packs("shop", "more", kind)[i]
			st := f.store.Clone()
			st.SetBytes(a, f.store.Bytes(b))
			st.SetBytes(b, f.store.Bytes(a))
			r := f.open(st, f.stranger())
			for _, id := range f.ids {
				m, err := r.Find(context.Background(), "shop", id)
				if err != nil {
					t.Fatal(err)
				}
				dir := filepath.Join(t.TempDir(), "back")
				_, err = r.Restore(context.Background(), m, RestoreOptions{Volume: "data", Path: dir})
				if err == nil && id == f.ids[2] { // the volumes are alike, and so may the packs be
					testtree.Compare(t, f.volume, dir, testtree.Options{})
				}
			}
		}
	}
	// One of another snapshot in place of it.
	keys := f.packs("shop", "data", "packs")
	st := f.store.Clone()
	st.SetBytes(keys[0], f.store.Bytes(keys[1]))
	if v := f.verify(st); len(v.Damage) == 0 {
		t.Error("an older pack in place of a newer one is not found")
	}
}

func TestSwappedNameObjectsRestoreNoOtherStack(t *testing.T) {
	f := newFort(t)
	shop, wiki := f.keys.Hide("stacks/shop/name"), f.keys.Hide("stacks/wiki/name")
	st := f.store.Clone()
	st.SetBytes(shop, f.store.Bytes(wiki))
	st.SetBytes(wiki, f.store.Bytes(shop))
	r := f.open(st, f.stranger())
	if m, err := r.Find(context.Background(), "shop", "latest"); err != nil || m.ID() != f.ids[2] {
		t.Errorf("by name: %v, %v", m, err)
	}
	list, err := r.List(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if l.Manifest != nil && l.Manifest.Stack != l.Stack {
			t.Errorf("stack %s is listed as %s", l.Manifest.Stack, l.Stack)
		}
	}
	if v := f.verify(st); len(v.Damage) < 2 {
		t.Errorf("verify says %v", v.Damage)
	}
}

// attackersKeys locks keys of the attacker's to the user's public recipient.
func (f *fort) attackersKeys(k *sealed.Keys) []byte {
	f.t.Helper()
	data, err := k.Lock(recipientsOf(f.t, f.owner).Recipients...)
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

func generate(t *testing.T, repository string) *sealed.Keys {
	t.Helper()
	k, err := sealed.Generate(repository, false)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (f *fort) wantRefused(st store.Reader, o Options, want error, what string) {
	f.t.Helper()
	r, err := Open(context.Background(), st, o)
	if err == nil {
		r.Close()
	}
	if !errors.Is(err, want) {
		f.t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func TestExchangedKeysAreNoticed(t *testing.T) {
	f := newFort(t)
	evil := generate(t, f.keys.Repository)
	// In place of the true ones.
	st := storetest.NewMemory()
	st.SetBytes(markerKey, f.store.Bytes(markerKey))
	st.SetBytes(lockKey(f.keys.Repository, "11111111"), f.attackersKeys(evil))
	f.wantRefused(st, f.options(), sealed.ErrForged, "the same id")
	// Beside them.
	st = f.store.Clone()
	st.SetBytes(lockKey(f.keys.Repository, "11111111"), f.attackersKeys(evil))
	f.wantRefused(st, f.options(), sealed.ErrForged, "beside the true ones")
	f.wantRefused(st, f.stranger(), sealed.ErrForged, "beside the true ones, to a stranger")
	// As a rotation, by one who stole the agent key and knows all that an agent does.
	agent := agentOf(t, f.agent).Agent
	evil.NameKey, evil.Generation = agent.NameKey, 2
	st = f.store.Clone()
	st.SetBytes(lockKey(f.keys.Repository, "11111111"), f.attackersKeys(evil))
	if _, err := Open(context.Background(), st, f.options()); err != nil {
		t.Errorf("a rotation that was not completed changes nothing: %v", err)
	}
	st.SetBytes(rotationsPrefix+"2", rotation{Keys: evil.Digest()}.encode())
	f.wantRefused(st, f.options(), sealed.ErrForged, "a made-up rotation")
	// A repository of the attacker's, with an id of its own, in the same place.
	other := generate(t, randomID())
	st = storetest.NewMemory()
	over, err := sealed.Overhead(other)
	if err != nil {
		t.Fatal(err)
	}
	m := marker{Format: FormatVersion, ID: other.Repository, Encryption: &encryption{Scheme: "age", Overhead: over}}
	if err := m.write(context.Background(), st); err != nil {
		t.Fatal(err)
	}
	st.SetBytes(lockKey(other.Repository, "11111111"), f.attackersKeys(other))
	f.wantRefused(st, f.options(), ErrSetBack, "another id")
	if _, err := Open(context.Background(), st, f.stranger()); err != nil {
		t.Errorf("docs/security.md says that first contact cannot know: %v", err)
	}
}

func TestAPlainMarkerInPlaceOfTheEncryptedOneIsRefused(t *testing.T) {
	f := newFort(t)
	for _, id := range []string{f.keys.Repository, randomID()} {
		st := storetest.NewMemory()
		m := marker{Format: FormatVersion, ID: id}
		if err := m.write(context.Background(), st); err != nil {
			t.Fatal(err)
		}
		f.wantRefused(st, f.options(), ErrKey, "a key is configured")
		f.wantRefused(st, f.stranger(), ErrKey, "a key is configured, at first contact")
		// Even if the key was forgotten at the same time.
		f.wantRefused(st, Options{TrustDir: f.options().TrustDir}, ErrSetBack, "no key is configured")
		if n := len(st.Keys()); n != 1 {
			t.Errorf("%d objects", n)
		}
	}
}

func TestAnEmptiedTargetIsNotBegunAnew(t *testing.T) {
	f := newFort(t)
	for _, o := range []Options{f.options(), {TrustDir: f.options().TrustDir}} {
		st := storetest.NewMemory()
		if _, err := Ensure(context.Background(), st, o); !errors.Is(err, ErrSetBack) {
			t.Errorf("%v", err)
		}
		if n := len(st.Keys()); n != 0 {
			t.Errorf("%q were written", st.Keys())
		}
	}
	if _, _, err := Init(context.Background(), storetest.NewMemory(), f.options()); !errors.Is(err, ErrSetBack) {
		t.Errorf("init: %v", err)
	}
}

func TestARollBackIsNoticedByReadersAndByTheNextBackup(t *testing.T) {
	f := newFort(t)
	f.store.Remove(f.manifest("shop", 3, f.ids[2]))
	f.store.Remove(f.manifest("shop", 2, f.ids[1]))
	if _, err := f.open(f.store, f.options()).Find(context.Background(), "shop", "latest"); !errors.Is(err, ErrSetBack) {
		t.Errorf("latest: %v", err)
	}
	var said []string
	r := f.open(f.store, f.options())
	s, err := r.Backup(context.Background(), f.store, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: f.volume}}, Notice: func(s string) { said = append(said, s) }})
	if err != nil || len(said) != 1 || !strings.Contains(said[0], "set back") {
		t.Errorf("the backup says %q, %v", said, err)
	}
	if s.Sequence != 4 {
		t.Errorf("number %d: a number was given twice", s.Sequence)
	}
	// The gap does not alarm for ever.
	if _, err := f.open(f.store, f.options()).Find(context.Background(), "shop", "latest"); err != nil {
		t.Errorf("after the next backup: %v", err)
	}
	// The agent, too, has seen them.
	st := f.store.Clone()
	st.Remove(f.manifest("shop", 4, s.ID))
	o := Options{Credentials: agentOf(t, f.agent), TrustDir: f.options().TrustDir}
	said = nil
	if _, err := f.open(st, o).Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: f.volume}}, Notice: func(s string) { said = append(said, s) }}); err != nil || len(said) != 2 {
		t.Errorf("the agent says %q, %v", said, err)
	}
}

// rotate rotates the fort's keys.
func (f *fort) rotate(c *Credentials) (before *sealed.Keys, done *Rotated) {
	f.t.Helper()
	r := f.open(f.store, f.options())
	before = r.keys
	done, err := r.RotateKeys(context.Background(), f.store, c)
	if err != nil {
		f.t.Fatal(err)
	}
	f.keys = r.keys
	return before, done
}

func TestAfterARotationTheOldAgentKeyIsWorthNothing(t *testing.T) {
	f := newFort(t)
	stolen, done := f.rotate(f.owner)
	f.wantRefused(f.store, Options{Credentials: agentOf(t, f.agent)}, ErrKey, "the old agent key")
	if _, err := Open(context.Background(), f.store, Options{Credentials: agentOf(t, done.AgentKey)}); err != nil {
		t.Errorf("the new agent key: %v", err)
	}
	f.wantClean(f.store)
	// Its thief can still write objects, and readers take none of them: neither behind
	// the last number nor at one that there is.
	w, err := sealed.NewWriter(f.store, stolen)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{9, 3, 1} {
		m := &Manifest{Format: FormatVersion, Repository: f.keys.Repository, Stack: "shop", Sequence: seq, Run: newRun(), Salt: randomID(), Trigger: "manual"}
		data, id, err := m.encode(pack.NewEncoder(pack.Dense))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Put(context.Background(), snapshotKey("shop", seq, id), data); err != nil {
			t.Fatal(err)
		}
		f.wantForged(f.store, "shop", seq, id, f.ids[2])
	}
	// Nor after another rotation, with the forgeries lying there.
	f.rotate(f.owner)
	r := f.open(f.store, f.stranger())
	list, err := r.List(context.Background(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, l := range list {
		if l.Err == nil {
			good++
		}
	}
	if good != 3 || len(list) != 6 {
		t.Errorf("%d of %d snapshots count, want 3 of 6", good, len(list))
	}
}

// A run that began before a rotation does not commit after it.
func TestARunThatARotationOvertookFails(t *testing.T) {
	f := newFort(t)
	for _, c := range []*Credentials{f.owner, agentOf(t, f.agent)} {
		st := f.store.Clone()
		once := false
		hooked := &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
			if op != storetest.OpPut || !strings.Contains(key, "/snapshots/") || once {
				return storetest.None
			}
			once = true
			return storetest.CallBefore(func() {
				if _, err := f.open(st, f.stranger()).RotateKeys(context.Background(), st, f.owner); err != nil {
					t.Error(err)
				}
			})
		}}
		r := f.open(hooked, Options{Credentials: c})
		if _, err := r.Backup(context.Background(), hooked, BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: f.volume}}}); !errors.Is(err, ErrKey) {
			t.Errorf("%v, want ErrKey", err)
		}
		f.wantClean(st) // it was withdrawn
	}
}

// The rotation taken back: former locks and no word of a rotation, as an old copy has them.
func TestARotationThatWasTakenBackIsNoticed(t *testing.T) {
	f := newFort(t)
	old := f.store.Clone()
	f.rotate(f.owner)
	f.wantRefused(old, f.options(), ErrSetBack, "an old copy")
	// Former locks that lie beside the new, where nothing may be deleted.
	st := f.store.Clone()
	for _, key := range old.Keys() {
		if strings.HasPrefix(key, keysPrefix) {
			st.SetBytes(key, old.Bytes(key))
		}
	}
	if _, err := Open(context.Background(), st, f.options()); err != nil {
		t.Errorf("with former locks: %v", err)
	}
	passphrase := &Credentials{Passphrase: "new one"}
	f.rotate(passphrase)
	for _, key := range old.Keys() {
		if strings.HasPrefix(key, keysPrefix) {
			f.store.SetBytes(key, old.Bytes(key))
		}
	}
	f.wantRefused(f.store, f.stranger(), ErrKey, "who has the former key only")
}
