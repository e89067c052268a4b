package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"filippo.io/age"
	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/sealed"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/testtree"
)

// envIdentity hands a child the identity of an encrypted repository.
const envIdentity = "BACKUPD_TEST_IDENTITY"

func keyFromEnvironment() *Credentials {
	text := os.Getenv(envIdentity)
	if text == "" {
		return nil
	}
	ids, err := sealed.ParseIdentities(text)
	if err != nil {
		panic(err)
	}
	return &Credentials{Identities: ids}
}

// newIdentity makes a user's key: what opens a repository, and its text.
func newIdentity(t testing.TB) (*Credentials, string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return &Credentials{Identities: []age.Identity{id}}, id.String()
}

// recipientsOf are the credentials of one who can lock and not open.
func recipientsOf(t testing.TB, c *Credentials) *Credentials {
	t.Helper()
	out := &Credentials{}
	for _, id := range c.Identities {
		r, name, ok := sealed.RecipientOf(id)
		if !ok {
			t.Fatal("an identity without a recipient")
		}
		out.Recipients, out.RecipientNames = append(out.Recipients, r), append(out.RecipientNames, name)
	}
	return out
}

func agentOf(t testing.TB, text string) *Credentials {
	t.Helper()
	k, err := sealed.ParseAgentKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return &Credentials{Agent: k}
}

// needs skips a test where a program is missing.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("CI must have %s; .ci/run installs it", p)
			}
			t.Skipf("needs %s", p)
		}
	}
}

func TestEncryptedSnapshotsOfAChangingTreeRestoreIdentically(t *testing.T) {
	needs(t, "age")
	believeStats(t)
	c, text := newIdentity(t)
	w := newWorldWith(t, c)
	key := filepath.Join(w.root, "identity")
	if err := os.WriteFile(key, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	w.script = func(cmd *exec.Cmd) ([]byte, error) {
		cmd.Env = append(os.Environ(), "IDENTITY="+key, "TMPDIR="+scratch)
		return cmd.CombinedOutput()
	}
	w.changeAndRestore(100)
	if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
		t.Errorf("restore.sh left %v (%v)", left, err)
	}
}

// age asks for a passphrase on the terminal and nowhere else.
func TestRestoreScriptAsksForThePassphrase(t *testing.T) {
	needs(t, "age")
	w := newWorldWith(t, &Credentials{Passphrase: "correct horse"})
	testtree.Random(t, w.volume, 7, testtree.RandomOptions{Files: 50, NoLarge: true})
	w.backup()
	for _, c := range []struct {
		typed string
		opens bool
	}{{"correct horse", true}, {"wrong horse", false}} {
		dir := filepath.Join(t.TempDir(), "restored")
		out, err := typeIn(t, exec.Command("sh", filepath.Join(w.target.Location(), "restore.sh"), "latest", "shop", "data", dir), c.typed)
		if c.opens != (err == nil) {
			t.Fatalf("typed %q: %v\n%s", c.typed, err, out)
		}
		if c.opens {
			testtree.Compare(t, w.volume, dir, testtree.Options{})
		} else if !bytes.Contains(out, []byte("nothing opens the repository's keys")) {
			t.Errorf("%s", out)
		}
	}
}

// typeIn runs a command on a terminal of its own and types a line at every
// question for a passphrase.
func typeIn(t *testing.T, cmd *exec.Cmd, line string) ([]byte, error) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(int(n)), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var out []byte
	asked := 0
	for buf := make([]byte, 4096); ; {
		n, err := master.Read(buf)
		out = append(out, buf[:n]...)
		for ; asked < bytes.Count(out, []byte("Enter passphrase")); asked++ {
			if _, err := master.WriteString(line + "\n"); err != nil {
				t.Fatal(err)
			}
		}
		if err != nil { // EIO: the last end of the other side was closed
			return out, cmd.Wait()
		}
	}
}

func TestAnEncryptedBackupThatFailsAtAnyOperationCostsNothing(t *testing.T) {
	c, _ := newIdentity(t)
	startingPointsWith(t, c, func(t *testing.T, s startingPoint) {
		for name, fault := range faults {
			forEachOp(t, s.n, func(k int) {
				st := s.store.Clone()
				f := &storetest.Faulty{Writer: st, Hook: at(k, fault)}
				err := promptly(t, func() error { _, err := s.backup(context.Background(), f); return err })
				if err != nil && !errors.Is(err, storetest.ErrFault) {
					t.Errorf("%s: %v, want the injected error", name, err)
				}
				s.recover(st)
				if t.Failed() {
					t.Logf("fault %s", name)
				}
			})
		}
	})
}

func TestAnEncryptedBackupKilledAtAnyOperationCostsNothing(t *testing.T) {
	believeStats(t)
	c, text := newIdentity(t)
	t.Setenv(envIdentity, text)
	s := startingPoint{lab: newLab(t), ids: map[string]string{}}
	s.credentials = c
	initial := filepath.Join(s.root, "initial")
	for _, d := range []string{initial, s.target()} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, n := s.killed("backup", -1, "before")
	for _, when := range []string{"before", "after"} {
		forEachOp(t, n, func(k int) {
			s.resetTarget(initial)
			s.killed("backup", k, when)
			s.recover(s.openTarget())
			if t.Failed() {
				t.Logf("killed %s", when)
			}
		})
	}
}

// A target where first backups were killed again and again is still as good as
// an empty one, and what they left is no damage.
func TestLeftoversOfKilledFirstBackupsAreNoObstacle(t *testing.T) {
	c, _ := newIdentity(t)
	l, st := newLab(t), storetest.NewMemory()
	l.credentials = c
	for range 3 {
		f := &storetest.Faulty{Writer: st, Hook: func(op, key string, _ int) storetest.Fault {
			if op == storetest.OpPut && key == markerKey {
				return storetest.FailBefore
			}
			return storetest.None
		}}
		if _, err := l.backup(context.Background(), f); !errors.Is(err, storetest.ErrFault) {
			t.Fatal(err)
		}
	}
	if n := len(st.Keys()); n != 6 {
		t.Fatalf("left are %q", st.Keys())
	}
	// Without a key it is refused: somebody meant it to be encrypted.
	if _, err := Ensure(context.Background(), st, Options{}); !errors.Is(err, ErrKey) {
		t.Errorf("without a key: %v", err)
	}
	l.wantSnapshots(st, map[string]string{l.mustBackup(st): l.states[0]})
	l.wantClean(st)
	r, err := Open(context.Background(), st, l.options())
	if err != nil {
		t.Fatal(err)
	}
	if list, err := r.Keys(context.Background()); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	// Somebody else's keys are no leftovers.
	foreign := storetest.NewMemory()
	foreign.SetBytes("keys/id_ed25519", []byte("x"))
	if _, err := Ensure(context.Background(), foreign, l.options()); !errors.Is(err, ErrForeign) {
		t.Errorf("foreign keys: %v", err)
	}
}

// Of two first backups at once one makes the repository and both go on in it.
func TestTwoEncryptedFirstBackupsMakeOneRepository(t *testing.T) {
	c, _ := newIdentity(t)
	st := storetest.NewMemory()
	var second *Repository
	f := &storetest.Faulty{Writer: st}
	f.Hook = func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && key == markerKey {
			return storetest.CallBefore(func() {
				var err error
				if second, err = Ensure(context.Background(), st, Options{Credentials: c}); err != nil {
					t.Error(err)
				}
			})
		}
		return storetest.None
	}
	first, err := Ensure(context.Background(), f, Options{Credentials: c})
	if err != nil || second == nil || first.ID != second.ID || !first.keys.Same(second.keys) {
		t.Fatalf("%v, %v, %v", first, second, err)
	}
}

// agentLab is an encrypted repository whose owner is away: a lab with the agent key.
func agentLab(t *testing.T) (l *lab, st *storetest.Memory, owner *Credentials) {
	t.Helper()
	believeStats(t)
	owner, _ = newIdentity(t)
	l, st = newLab(t), storetest.NewMemory()
	_, key, err := Init(context.Background(), st, Options{Credentials: recipientsOf(t, owner)})
	if err != nil {
		t.Fatal(err)
	}
	l.credentials = agentOf(t, key)
	return l, st, owner
}

// agentBackup takes a snapshot and returns what was stored, and what was said.
func (l *lab) agentBackup(st *storetest.Memory) (sum *Summary, stored uint64, notices []string) {
	l.t.Helper()
	r, err := Ensure(context.Background(), st, l.settled())
	if err != nil {
		l.t.Fatal(err)
	}
	defer r.Close()
	sum, err = r.Backup(context.Background(), st, BackupOptions{Stack: "shop", Volumes: l.sources(), Notice: func(s string) { notices = append(notices, s) }})
	if err != nil {
		l.t.Fatal(err)
	}
	for _, v := range sum.Volumes {
		stored += v.BytesStored
	}
	return sum, stored, notices
}

func TestAnAgentBacksUpIncrementallyWhileItsCacheLives(t *testing.T) {
	l, st, owner := agentLab(t)
	ids := map[string]string{}
	first, all, notices := l.agentBackup(st)
	ids[first.ID] = l.states[0]
	if len(notices) > 0 {
		t.Errorf("the first backup says %q", notices)
	}
	l.change()
	second, some, notices := l.agentBackup(st)
	ids[second.ID] = l.states[1]
	if some > all*3/4 || len(notices) > 0 { // two of the four large files are new
		t.Errorf("the second backup stored %d of %d and says %q", some, all, notices)
	}
	_, none, notices := l.agentBackup(st)
	if none > 20_000 || len(notices) > 0 {
		t.Errorf("without a change %d bytes were stored, and it says %q", none, notices)
	}
	l.drop(l.cache())
	third, again, notices := l.agentBackup(st)
	ids[third.ID] = l.states[1]
	if again < all || len(notices) != 1 || !strings.Contains(notices[0], "stored again this once") {
		t.Errorf("without its cache it stored %d of %d and says %q", again, all, notices)
	}
	if _, none, notices := l.agentBackup(st); none > 20_000 || len(notices) > 0 {
		t.Errorf("the one after that stored %d and says %q", none, notices)
	}
	l.credentials = owner
	delete(ids, third.ID) // all others are of the last state
	l.wantSnapshots(st, ids)
	l.wantClean(st)
}

// Every way in which an agent's cache can be wrong costs a full backup, and no snapshot.
func TestAnAgentWithADamagedCacheTakesAWholeSnapshot(t *testing.T) {
	l, st, owner := agentLab(t)
	l.agentBackup(st)
	agent := l.credentials
	for name, spoil := range map[string]func(path string) error{
		"cut":     func(path string) error { return os.Truncate(path, 10) },
		"altered": func(path string) error { return os.WriteFile(path, noise(5, 5000), 0o600) },
		"flipped": func(path string) error {
			data, err := os.ReadFile(path)
			if err == nil {
				data[len(data)/3] ^= 1
				err = os.WriteFile(path, data, 0o600)
			}
			return err
		},
		"lost": os.Remove,
	} {
		for _, kind := range []string{"/index/", "/snapshots/"} {
			l.credentials = agent
			err := filepath.WalkDir(l.cache(), func(path string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() || !strings.Contains(path, kind) {
					return err
				}
				return spoil(path)
			})
			if err != nil {
				t.Fatal(err)
			}
			sum, _, notices := l.agentBackup(st)
			if len(notices) != 1 {
				t.Errorf("%s %s: it says %q", kind, name, notices)
			}
			l.credentials = owner
			l.wantSnapshots(st, map[string]string{sum.ID: l.states[0]})
		}
	}
}

// An agent's cache tells names, and restores nothing: not even a volume that
// would be left half restored.
func TestAnAgentRestoresNothing(t *testing.T) {
	l, st, _ := agentLab(t)
	sum, _, _ := l.agentBackup(st)
	for _, cached := range []bool{true, false} {
		if !cached {
			l.drop(l.cache())
		}
		dir := filepath.Join(l.root, "back")
		if err := l.restore(context.Background(), st, sum.ID, "data", dir, false); !errors.Is(err, sealed.ErrNoIdentity) {
			t.Errorf("restore: %v", err)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Error("the restore made the volume")
		}
		r, err := Open(context.Background(), st, l.settled())
		if err != nil {
			t.Fatal(err)
		}
		m, err := r.Find(context.Background(), "shop", sum.ID)
		if err == nil {
			err = r.Export(context.Background(), m, "data", &bytes.Buffer{}, func(Warning) {}, nil)
		}
		if !errors.Is(err, sealed.ErrNoIdentity) {
			t.Errorf("export: %v", err)
		}
		for what, err := range map[string]error{
			"list keys": func() error { _, err := r.Keys(context.Background()); return err }(), "rotate": func() error {
				_, err := r.RotateKeys(context.Background(), st, &Credentials{Passphrase: "x"})
				return err
			}(),
			"add": r.AddKeys(context.Background(), st, &Credentials{Passphrase: "x"}), "remove": r.RemoveKey(context.Background(), st, "x"),
			"agent key": func() error { _, err := r.AgentKey(); return err }(),
		} {
			if !errors.Is(err, sealed.ErrNoIdentity) {
				t.Errorf("%s: %v", what, err)
			}
		}
		r.Close()
	}
}

// Whatever a target's operator sees, at any moment of a run, tells sizes,
// counts and times.
func TestNothingButSizesAndCountsIsVisibleOnTheTarget(t *testing.T) {
	believeStats(t)
	owner, _ := newIdentity(t)
	const stack, volume = "accounting-of-acme", "personal-letters"
	dir := filepath.Join(fastDir(t), "v")
	secrets := [][]byte{[]byte(stack), []byte(volume), []byte("dismissal.txt"), []byte("the-tag"), []byte("the-origin"), []byte("We regret"), []byte("sidebar"), []byte("*.excluded"), []byte("linktarget")}
	for _, err := range []error{
		os.MkdirAll(dir+"/sidebar", 0o755), os.WriteFile(dir+"/dismissal.txt", []byte("We regret to inform you"), 0o600),
		os.WriteFile(dir+"/large", noise(1, 900_000), 0o600), os.WriteFile(dir+"/sidebar/x", noise(2, 5000), 0o600), os.Symlink("linktarget", dir+"/link"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	mem := storetest.NewMemory()
	var inner []string // frame ids, from a repository that is not encrypted
	plain := storetest.NewMemory()
	pr, err := Ensure(context.Background(), plain, Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := BackupOptions{Stack: stack, Volumes: []Source{{Name: volume, Path: dir}}, Tags: []string{"the-tag"}, Origin: "the-origin", Exclude: []string{"*.excluded"}}
	if _, err := pr.Backup(context.Background(), plain, o); err != nil {
		t.Fatal(err)
	}
	for _, key := range plain.Keys() {
		for _, line := range bytes.Split(plain.Bytes(key), []byte("\n")) {
			if i := bytes.Index(line, []byte(`"id":"`)); strings.Contains(key, "/packs/") && i >= 0 {
				inner = append(inner, string(line[i+6:i+70]))
			}
		}
	}
	if len(inner) < 3 {
		t.Fatalf("%d frames only", len(inner))
	}
	for _, id := range inner {
		raw := make([]byte, 32)
		if _, err := fmt.Sscanf(id, "%x", &raw); err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, []byte(id[:32]), raw[:16])
	}
	look := func(key string, data []byte) {
		if key == restoreScriptKey || key == restoreNotesKey {
			return
		}
		for _, s := range secrets {
			if strings.Contains(key, string(s)) || bytes.Contains(data, s) {
				t.Errorf("%s shows %q", key, s)
			}
		}
		if bytes.Contains(data, []byte{0x28, 0xB5, 0x2F, 0xFD}) && !bytes.HasPrefix(data, []byte("age-encryption.org/v1\n")) {
			t.Errorf("%s is zstd, and not encrypted", key)
		}
		if _, ok := strings.CutPrefix(key, "stacks/"); ok && !strings.Contains(key, "/runs/") && !bytes.HasPrefix(data, []byte("age-encryption.org/v1\n-> X25519 ")) {
			t.Errorf("%s is no age file", key)
		}
	}
	intents := 0
	f := &storetest.Faulty{Writer: mem, Hook: func(op, key string, _ int) storetest.Fault {
		if op != storetest.OpPut {
			return storetest.None
		}
		return storetest.CallAfter(func() {
			look(key, mem.Bytes(key))
			if strings.Contains(key, "/runs/") {
				intents++
			}
		})
	}}
	r, err := Ensure(context.Background(), f, Options{Credentials: owner})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for range 2 {
		s, err := r.Backup(context.Background(), f, o)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, s.ID)
	}
	if err := r.AddKeys(context.Background(), f, &Credentials{Passphrase: "We regret"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.RotateKeys(context.Background(), f, owner); err != nil {
		t.Fatal(err)
	}
	for _, key := range mem.Keys() {
		look(key, mem.Bytes(key))
	}
	if intents < 2 {
		t.Error("no intent was looked at")
	}
	// The id is a hash of what has a random member: nobody can guess and compare.
	m, err := r.Find(context.Background(), stack, ids[1])
	if err != nil || len(m.Salt) != 32 {
		t.Errorf("the manifest's salt is %q (%v)", m.Salt, err)
	}
}
