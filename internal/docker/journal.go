package docker

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/disko/backupd/internal/statefile"
)

// The journal of a run is a file of JSON lines, <state>/journal/<run>.json: a
// header, then what is about to be done, written and synced before it is done,
// and what is over. Its owner holds a lock on it for as long as it lives; the
// kernel drops that lock with the process, so that a journal that can be locked
// was left over by a run that died. (A process id would not tell: in a
// container all agents are number 1.)

const journalVersion = 1

// entry is something that must be undone.
type entry struct {
	N       int    `json:"n"`
	Act     Act    `json:"act"` // or actPost
	Wave    int    `json:"wave,omitempty"`
	Service string `json:"service"`
	// Container, Name, Number and OneOff are of a container.
	Container string `json:"container,omitempty"`
	Name      string `json:"name,omitempty"`
	Number    int    `json:"number,omitempty"`
	OneOff    bool   `json:"oneoff,omitempty"`
	// Grace is how long a stop may last, in nanoseconds.
	Grace time.Duration `json:"grace,omitempty"`
	// SwarmID and Replicas are of a Swarm service.
	SwarmID  string  `json:"swarm,omitempty"`
	Replicas *uint64 `json:"replicas,omitempty"`
	// Hook is of actPost.
	Hook *Hook `json:"hook,omitempty"`

	begun   time.Time // when it was written
	idle    bool      // nothing was asked of the engine, or it has refused
	acted   bool      // the engine has said that it is done
	resumed bool      // it stood still, and was made to go on
	done    bool      // nothing is left to undo
}

// actPost is a hook that must be run when all is over.
const actPost Act = "post"

// record is a line of a journal.
type record struct {
	// Journal, Run, Project and Engine stand in the header alone.
	Journal int    `json:"journal,omitempty"`
	Run     string `json:"run,omitempty"`
	Project string `json:"project,omitempty"`
	Engine  string `json:"engine,omitempty"`

	At     time.Time `json:"at,omitzero"`
	Intent []entry   `json:"intent,omitempty"`
	Acted  []int     `json:"acted,omitempty"`
	Done   []int     `json:"done,omitempty"`
}

// journal is an open one, whose lock is held.
type journal struct {
	f                *os.File
	run, project, id string // id of the engine
	entries          []*entry
	now              func() time.Time
}

func journalDir(state string) string { return filepath.Join(state, "journal") }

// createJournal makes the journal of a run, locked and on the disk.
func createJournal(state, run string, e *Engine, project string, now func() time.Time) (*journal, error) {
	dir := journalDir(state)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's directory: %w", err)
	}
	name := filepath.Join(dir, run+".json")
	f, err := createLocked(name)
	if err != nil {
		return nil, fmt.Errorf("make journal %s: %w", name, err)
	}
	j := &journal{f: f, run: run, project: project, id: e.ID, now: now}
	err = j.write(record{Journal: journalVersion, Run: run, Project: project, Engine: e.ID}, true)
	if err == nil {
		err = errors.Join(statefile.SyncDir(dir), statefile.SyncDir(state)) // which may be where dir is new
	}
	if err != nil {
		os.Remove(name)
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// createLocked makes a file and locks it. Between the two, a recovery may take
// it for left over and remove it: then it is made again.
func createLocked(name string) (*os.File, error) {
	for range 10 {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, err
		}
		if err := lock(f, true); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if isAt(f, name) {
			return f, nil
		}
		if err := f.Close(); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("it was removed again and again while it was made")
}

// isAt says whether an open file is still the one of that name.
func isAt(f *os.File, name string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(name)
	return err == nil && os.SameFile(a, b)
}

// errOwned: the owner of a journal lives.
var errOwned = errors.New("the run that it belongs to lives")

// openLeftOver opens a journal whose owner has died. Nil without an error: it is
// gone, or holds nothing.
func openLeftOver(name string, now func() time.Time) (*journal, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := lock(f, false); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if !isAt(f, name) {
		return nil, f.Close()
	}
	j := &journal{f: f, now: now}
	if err := j.read(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return j, nil
}

// read takes in what is there. A last line without an end was being written when
// the run died, so that what it announces was not begun.
func (j *journal) read() error {
	data, err := io.ReadAll(j.f)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(data, '\n') + 1
	if whole < len(data) {
		if err := j.f.Truncate(int64(whole)); err != nil {
			return err
		}
	}
	lines := bufio.NewScanner(bytes.NewReader(data[:whole]))
	lines.Buffer(nil, whole+1)
	for n := 1; lines.Scan(); n++ {
		d := json.NewDecoder(bytes.NewReader(lines.Bytes()))
		d.DisallowUnknownFields()
		var r record
		if err := d.Decode(&r); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if n == 1 && r.Journal != journalVersion {
			return fmt.Errorf("it is of version %d, and this backupd knows %d", r.Journal, journalVersion)
		}
		if err := j.apply(r); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
	return lines.Err()
}

func (j *journal) apply(r record) error {
	if r.Journal > 0 {
		j.run, j.project, j.id = r.Run, r.Project, r.Engine
	}
	for i := range r.Intent {
		e := r.Intent[i]
		if e.N != len(j.entries) {
			return fmt.Errorf("entry %d stands where %d should", e.N, len(j.entries))
		}
		e.begun = r.At
		j.entries = append(j.entries, &e)
	}
	for _, n := range slices.Concat(r.Acted, r.Done) {
		if n < 0 || n >= len(j.entries) {
			return fmt.Errorf("there is no entry %d", n)
		}
	}
	for _, n := range r.Acted {
		j.entries[n].acted = true
	}
	for _, n := range r.Done {
		j.entries[n].done = true
	}
	return nil
}

// intend writes what is about to be done. It is on the disk when intend returns.
func (j *journal) intend(list []*entry) error {
	at := j.now()
	r := record{At: at}
	for i, e := range list {
		e.N, e.begun = len(j.entries)+i, at
		r.Intent = append(r.Intent, *e)
	}
	if err := j.write(r, true); err != nil {
		return err
	}
	j.entries = append(j.entries, list...)
	return nil
}

// mark writes that entries were acted upon or undone. It need not reach the
// disk: whoever does not know it finds out from the engine.
func (j *journal) mark(acted, done []*entry) error {
	r := record{}
	for _, e := range acted {
		r.Acted = append(r.Acted, e.N)
	}
	for _, e := range done {
		e.done = true
		r.Done = append(r.Done, e.N)
	}
	if r.Acted == nil && r.Done == nil {
		return nil
	}
	return j.write(r, false)
}

func (j *journal) write(r record, sync bool) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write journal %s: %w", j.f.Name(), err)
	}
	if !sync {
		return nil
	}
	if err := j.f.Sync(); err != nil {
		return fmt.Errorf("sync journal %s: %w", j.f.Name(), err)
	}
	return nil
}

// open are the entries that are not undone, those of the last wave first.
func (j *journal) open() []*entry {
	var out []*entry
	for _, e := range j.entries {
		if !e.done {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b *entry) int { return b.Wave - a.Wave })
	return out
}

// settle removes the journal if all is undone, and gives up the lock. What is
// not undone stays for the next recovery.
func (j *journal) settle() error {
	if len(j.open()) > 0 {
		return j.f.Close()
	}
	// Removed before the lock is given up, so that no one reads it in between.
	err := os.Remove(j.f.Name())
	if err == nil {
		err = statefile.SyncDir(filepath.Dir(j.f.Name()))
	}
	return errors.Join(err, j.f.Close())
}

// LeftOver names the journals in a state directory, of runs that live and of
// some that died. If there are any and no engine can be reached, services may
// stand still that nobody starts.
func LeftOver(state string) ([]string, error) {
	list, err := os.ReadDir(journalDir(state))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list journals: %w", err)
	}
	var out []string
	for _, e := range list {
		if strings.HasSuffix(e.Name(), ".json") {
			out = append(out, filepath.Join(journalDir(state), e.Name()))
		}
	}
	return out, nil
}
