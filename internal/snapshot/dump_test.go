package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
)

// dumping is what a program writes: data, then an error of the read or of Close.
type dumping struct {
	io.Reader
	closed int
	err    error // of Close
}

func (d *dumping) Close() error {
	d.closed++
	return d.err
}

// failing ends a reader with an error.
func failing(data []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(data), readerFunc(func([]byte) (int, error) { return 0, err }))
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (w *world) dump(d *dumping) (*Summary, error) {
	return w.repo.Backup(context.Background(), w.target, BackupOptions{
		Stack: "shop", Volumes: []Source{{Name: "zdata", Path: w.volume}},
		Dumps: []Dump{{Volume: "db.dump", Path: "sub/dump.sql", Open: func(context.Context) (io.ReadCloser, error) { return d, nil }}},
	})
}

// wantDump makes sure that a dump comes back in every way.
func (w *world) wantDump(id string, want []byte) {
	w.t.Helper()
	ctx := context.Background()
	m, err := w.repo.Find(ctx, "shop", id)
	if err != nil {
		w.t.Fatal(err)
	}
	restored, err := os.MkdirTemp(w.root, "restored-")
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := w.repo.Restore(ctx, m, RestoreOptions{Volume: "db.dump", Path: restored, NoOwner: os.Geteuid() != 0}); err != nil {
		w.t.Fatal(err)
	}
	scripted := filepath.Join(w.root, "scripted-"+id)
	if out, err := exec.Command("sh", filepath.Join(w.target.Location(), "restore.sh"), id, "shop", "db.dump", scripted).CombinedOutput(); err != nil {
		w.t.Fatalf("restore.sh: %v\n%s", err, out)
	}
	exported := filepath.Join(w.root, "exported-"+id)
	if err := os.Mkdir(exported, 0o755); err != nil {
		w.t.Fatal(err)
	}
	var out bytes.Buffer
	if err := w.repo.Export(ctx, m, "db.dump", &out, func(w Warning) { panic(w.String()) }, nil); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "zstd -dc | tar -xp -C "+exported)
	cmd.Stdin = &out
	if msg, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("tar: %v\n%s", err, msg)
	}
	for _, dir := range []string{restored, scripted, exported} {
		path := filepath.Join(dir, "sub/dump.sql")
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			w.t.Errorf("%s: %d bytes, %v; want %d", path, len(got), err, len(want))
			continue
		}
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o600 || st.ModTime().Before(m.Started.Truncate(0)) || st.ModTime().After(m.Finished) {
			w.t.Errorf("%s: %v, %v", path, st, err)
		}
	}
}

func TestADumpIsAVolumeLikeAnyOther(t *testing.T) {
	w := newWorld(t)
	large := bytes.Repeat([]byte("insert into orders values (1, 'shoes');\n"), 9<<20/40)
	for i := 0; i < len(large); i += 1000 {
		large[i] = byte(i)
	}
	contents := map[string][]byte{"empty": nil, "small": []byte("select 1;\n"), "one block": noise(1, 512), "large": append(large, noise(2, 3<<20)...)}
	for name, data := range contents {
		d := &dumping{Reader: bytes.NewReader(data)}
		s, err := w.dump(d)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if d.closed != 1 {
			t.Errorf("%s: closed %d times", name, d.closed)
		}
		if v := s.Volumes[0]; v.Name != "db.dump" || v.Files != 1 || v.Bytes != uint64(len(data)) || v.BytesRead != v.Bytes {
			t.Errorf("%s: %+v", name, s.Volumes)
		}
		w.wantDump(s.ID, data)
	}
	w.verify()
}

func TestADumpThatDidNotChangeIsStoredOnce(t *testing.T) {
	w := newWorld(t)
	data := noise(5, 5<<20)
	for n := range 3 {
		// A few bytes in front move no cut but the first.
		text := append([]byte(strings.Repeat("-", n)), data...)
		s, err := w.dump(&dumping{Reader: bytes.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		v := s.Volumes[0]
		if n > 0 && (v.BytesStored > 1<<20 || v.FramesReused < 5) {
			t.Errorf("stored %d bytes, reused %d frames", v.BytesStored, v.FramesReused)
		}
		w.wantDump(s.ID, text)
	}
}

// Half a dump is none: whatever way it ends that is not the end.
func TestADumpThatFailsFailsTheBackup(t *testing.T) {
	w := newWorld(t)
	w.backup()
	count := func() int {
		list, err := w.repo.List(context.Background(), "shop")
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	for name, d := range map[string]*dumping{
		"at once":         {Reader: failing(nil, errTest)},
		"midway":          {Reader: failing(noise(1, 700<<10), errTest)},
		"late":            {Reader: failing(noise(1, 9<<20), errTest)},
		"cut off":         {Reader: failing(noise(1, 700<<10), io.ErrUnexpectedEOF)},
		"cut off, hidden": {Reader: failing(noise(1, 700<<10), fmt.Errorf("attached stream: %w", io.EOF))},
		"at Close":        {Reader: bytes.NewReader(noise(1, 700<<10)), err: errTest},
		"empty, at Close": {Reader: bytes.NewReader(nil), err: errTest},
	} {
		if _, err := w.dump(d); !errors.Is(err, ErrDump) || !strings.Contains(err.Error(), "db.dump") {
			t.Errorf("%s: error %v", name, err)
		}
		if d.closed != 1 {
			t.Errorf("%s: closed %d times", name, d.closed)
		}
		if n := count(); n != 1 {
			t.Fatalf("%s: %d snapshots", name, n)
		}
	}
	_, err := w.repo.Backup(context.Background(), w.target, BackupOptions{Stack: "shop", Dumps: []Dump{{
		Volume: "db.dump", Path: "x", Open: func(context.Context) (io.ReadCloser, error) { return nil, errTest },
	}}})
	if !errors.Is(err, ErrDump) || !errors.Is(err, errTest) || count() != 1 {
		t.Errorf("cannot be opened: %v", err)
	}
	w.verify()
}

func TestADumpIsReadBeforeTheFreezeAndFailsWithoutOne(t *testing.T) {
	w := newWorld(t)
	f := &freezer{}
	o := BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: w.volume}}, Freeze: f, Dumps: []Dump{{
		Volume: "db.dump", Path: "dump.sql", Open: func(context.Context) (io.ReadCloser, error) {
			if f.frozen.Load() > 0 {
				t.Error("the dump began after the freeze")
			}
			return nil, errTest
		},
	}}}
	if _, err := w.repo.Backup(context.Background(), w.target, o); !errors.Is(err, errTest) {
		t.Errorf("error %v", err)
	}
	f.wantThawed(t, 0)
}

func TestAnInterruptedDumpIsClosed(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d := &dumping{}
	o := BackupOptions{Stack: "shop", Dumps: []Dump{{
		Volume: "db.dump", Path: "dump.sql", Open: func(ctx context.Context) (io.ReadCloser, error) {
			d.Reader = readerFunc(func([]byte) (int, error) {
				cancel()
				<-ctx.Done() // a program that hangs, until it is told to end
				return 0, ctx.Err()
			})
			return d, nil
		},
	}}}
	err := promptly(t, func() error { _, err := w.repo.Backup(ctx, w.target, o); return err })
	if !errors.Is(err, context.Canceled) || d.closed != 1 {
		t.Errorf("error %v, closed %d times", err, d.closed)
	}
}

func TestDumpsAreCheckedBeforeAnythingIsTouched(t *testing.T) {
	open := func(context.Context) (io.ReadCloser, error) { return nil, errTest }
	for _, d := range []Dump{
		{Volume: "db/dump", Path: "x", Open: open},
		{Volume: "data", Path: "x", Open: open}, // a volume's name
		{Volume: "db.dump", Path: "", Open: open},
		{Volume: "db.dump", Path: ".", Open: open},
		{Volume: "db.dump", Path: "..", Open: open},
		{Volume: "db.dump", Path: "../x", Open: open},
		{Volume: "db.dump", Path: "a/../x", Open: open},
		{Volume: "db.dump", Path: "/x", Open: open},
		{Volume: "db.dump", Path: "x/", Open: open},
		{Volume: "db.dump", Path: "x\x00", Open: open},
		{Volume: "db.dump", Path: "x"},
	} {
		o := BackupOptions{Stack: "shop", Volumes: []Source{{Name: "data", Path: t.TempDir()}}, Dumps: []Dump{d}}
		if err := o.Check(); !errors.Is(err, ErrUsage) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

// Uploads that fail while a dump is read are what the error tells of.
func TestATargetThatFailsUnderADumpIsNamed(t *testing.T) {
	st := &storetest.Faulty{Writer: storetest.NewMemory()}
	r, err := Ensure(context.Background(), st, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	st.Hook = func(op, key string, _ int) storetest.Fault {
		if op == storetest.OpPut && strings.Contains(key, "/packs/") {
			return storetest.FailBefore
		}
		return storetest.None
	}
	d := &dumping{Reader: bytes.NewReader(noise(1, 64<<20))}
	_, err = r.Backup(context.Background(), st, BackupOptions{Stack: "shop", Dumps: []Dump{{
		Volume: "db.dump", Path: "x", Open: func(context.Context) (io.ReadCloser, error) { return d, nil },
	}}})
	if !errors.Is(err, storetest.ErrFault) || d.closed != 1 {
		t.Errorf("error %v, closed %d times", err, d.closed)
	}
}
