package seed

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/disko/backupd/internal/statefile"
)

// Verdict is what the ledger says of a volume.
type Verdict string

// Verdicts. Kept and done are for ever, as long as it is the same volume.
const (
	Kept    Verdict = "kept"    // the project's own; backupd never writes to it by itself
	Pending Verdict = "pending" // to be seeded, or being seeded
	Done    Verdict = "done"    // seeded; the project's own from then on
)

// Record is the ledger's line on one volume.
type Record struct {
	Identity Identity  `json:"identity"`
	Verdict  Verdict   `json:"verdict"`
	Since    time.Time `json:"since"`
	Why      string    `json:"why,omitempty"`
	// Snapshot is the id of the one that it was seeded from, or is being.
	Snapshot string `json:"snapshot,omitempty"`
	// Listing is what lay in the volume when it was found fresh: the engine's
	// copy of an image, which a seed may delete. Only while pending.
	Listing []Entry `json:"listing,omitempty"`
}

// stackRecord is the ledger's part on one stack.
type stackRecord struct {
	// Seeded is the snapshot that this installation comes from. Its own
	// snapshots do not lead the line until the line is taken over.
	Seeded string `json:"seeded,omitempty"`
	// Seeding is the snapshot that an unfinished seed began with: the stack's
	// volumes are of one moment, so it is finished with the same.
	Seeding string             `json:"seeding,omitempty"`
	Volumes map[string]*Record `json:"volumes"`
}

// book is the ledger's file.
type book struct {
	Version int                     `json:"version"`
	Stacks  map[string]*stackRecord `json:"stacks"`
}

const bookVersion = 1

// Files of the state directory.
const (
	ledgerFile = "ledger.json"
	lockFile   = "lock"
)

// ErrLedger says that the ledger cannot be understood. Nothing is seeded then:
// it may say of a volume that it must not be.
var ErrLedger = errors.New("the ledger cannot be understood")

// strict decodes one JSON value and refuses unknown fields and what follows.
func strict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows its end")
	}
	return nil
}

func parseBook(b []byte) (*book, error) {
	var version struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(b, &version) == nil && version.Version > bookVersion {
		return nil, fmt.Errorf("%w: it is of version %d, this backupd knows up to %d: use a newer backupd", ErrLedger, version.Version, bookVersion)
	}
	var k book
	if err := strict(b, &k); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLedger, err)
	}
	if k.Version != bookVersion || k.Stacks == nil {
		return nil, fmt.Errorf("%w: it has no version", ErrLedger)
	}
	for stack, s := range k.Stacks {
		if s == nil || s.Volumes == nil {
			return nil, fmt.Errorf("%w: stack %q is empty", ErrLedger, stack)
		}
		for name, r := range s.Volumes {
			if r == nil || r.Verdict != Kept && r.Verdict != Pending && r.Verdict != Done {
				return nil, fmt.Errorf("%w: volume %q of stack %q has no verdict", ErrLedger, name, stack)
			}
		}
	}
	return &k, nil
}

// readBook reads a state directory's ledger; an empty one where there is none.
// A reader needs no lock: the file is exchanged as a whole.
func readBook(dir string) (*book, error) {
	path := filepath.Join(dir, ledgerFile)
	none := &book{Version: bookVersion, Stacks: map[string]*stackRecord{}}
	if dir == "" {
		return none, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	k, err := parseBook(b)
	if err != nil {
		return nil, fmt.Errorf("read the ledger %s: %w; if it is lost, remove the file: then backupd decides by what lies in the volumes", path, err)
	}
	return k, nil
}

func (k *book) stack(name string) *stackRecord {
	s := k.Stacks[name]
	if s == nil {
		s = &stackRecord{Volumes: map[string]*Record{}}
		k.Stacks[name] = s
	}
	return s
}

// Ledger is the memory of what was decided about a stack's volumes, in the state
// directory. Whoever has it open has it alone.
type Ledger struct {
	dir  string
	lock *os.File
	book *book
}

// OpenLedger makes the state directory where it is missing, waits for the lock in
// it, and reads the ledger. waiting, where set, is called once if somebody has the lock.
func OpenLedger(ctx context.Context, dir string, waiting func()) (*Ledger, error) {
	if dir == "" {
		return nil, errors.New("open the ledger: there is no state directory; name one with --state-dir")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the ledger: %w; the state directory must be a volume that can be written", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the ledger: %w; the state directory must be a volume that can be written", err)
	}
	if err := wait(ctx, f, 0, waiting); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the ledger %s: %w", f.Name(), err)
	}
	l := &Ledger{dir: dir, lock: f}
	if l.book, err = readBook(dir); err != nil {
		_ = f.Close()
		return nil, err
	}
	return l, nil
}

// Close gives the lock back.
func (l *Ledger) Close() error { return l.lock.Close() }

// save makes the ledger durable: it is as it was, or as it is, whatever happens.
func (l *Ledger) save() error {
	b, err := json.Marshal(l.book)
	if err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	path := filepath.Join(l.dir, ledgerFile)
	if err := statefile.Replace(path, append(b, '\n')); err != nil {
		return fmt.Errorf("write the ledger: %w", err)
	}
	return nil
}

// Seeded returns the id of the snapshot that this installation of a stack was
// seeded from; empty if it was not, or has taken the line over since.
func Seeded(dir, stack string) (string, error) {
	k, err := readBook(dir)
	if err != nil {
		return "", err
	}
	if s := k.Stacks[stack]; s != nil {
		return s.Seeded, nil
	}
	return "", nil
}

// Records returns what the ledger says of a stack's volumes.
func Records(dir, stack string) (map[string]Record, error) {
	k, err := readBook(dir)
	if err != nil {
		return nil, err
	}
	out := map[string]Record{}
	if s := k.Stacks[stack]; s != nil {
		for name, r := range s.Volumes {
			out[name] = *r
		}
	}
	return out, nil
}

// TakeOver makes this installation of a stack lead the line that it was seeded from: the ledger
// forgets that it was. It returns the snapshot that it came from, empty if none.
func TakeOver(ctx context.Context, dir, stack string) (string, error) {
	l, err := OpenLedger(ctx, dir, nil)
	if err != nil {
		return "", fmt.Errorf("take over the line of stack %s: %w", stack, err)
	}
	defer l.Close()
	s := l.book.stack(stack)
	was := s.Seeded
	if was == "" {
		return "", nil
	}
	s.Seeded = ""
	if err := l.save(); err != nil {
		return "", fmt.Errorf("take over the line of stack %s: %w", stack, err)
	}
	return was, nil
}
