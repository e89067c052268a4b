// Package agent is what backupd does when nobody is at the keyboard, and what it
// does with containers when somebody is: it finds out where it runs, seeds fresh
// volumes, keeps the schedule, has services stand still while their volumes are
// read, thins out old snapshots, proves that they restore, and tells.
//
// Invariants: an engine is optional; what a run did is in the history before
// anybody is told; two runs of one stack never overlap, whoever began them; a
// service that was made to stand still goes on, whatever happens.
//
// It composes the packages that each do one of these things. It knows no flags
// and no configuration: cmd hands it typed values and functions that open targets.
package agent

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/disko/backupd/internal/docker"
	"github.com/disko/backupd/internal/notify"
	"github.com/disko/backupd/internal/runs"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/worker"
)

// Settings are an agent's.
type Settings struct {
	// Stack is the name of the stack in the repository; empty for the Compose project's.
	Stack string
	// Origin is the name of this installation; empty for the engine's id, or one
	// that is made up and kept in the state directory.
	Origin   string
	StateDir string // empty: nothing is kept
	Version  string
	// Targets are tried in this order where one is read from.
	Targets []string
	// Places opens repositories to write to, and makes those that are empty.
	Places func(ctx context.Context, targets []string) (*Places, error)
	// Repository opens the first repository that answers, to read from; close ends
	// what was opened.
	Repository func(ctx context.Context, targets []string) (repo *snapshot.Repository, close func(), err error)
	// WorkerSettings are what a worker needs of the settings of targets and keys: as
	// variables, and as files that it may not see; nil for none.
	WorkerSettings func() (env []string, files []worker.File, err error)
	// Free is how many bytes may be written below a directory; nil where nobody can tell.
	Free func(dir string) (bytes int64, known bool)
	// Teller tells of runs; nil tells nobody.
	Teller *notify.Teller
	Log    *slog.Logger
	// Notice tells the user why there is something to wait for; nil tells nobody.
	Notice func(text string)
	// WithoutEngine leaves the engine alone, which has been found not to answer.
	WithoutEngine bool
	// Now is the clock; time.Now where nil.
	Now func() time.Time
}

// Places are opened repositories, of which there is one at least.
type Places struct {
	Up    []snapshot.Place
	Down  []snapshot.PlaceResult // those that did not answer
	Close func()
}

// Agent runs what Settings say.
type Agent struct {
	Settings
	// Engine is the Docker engine; nil without one.
	Engine *docker.Engine
	// Self is the own container; nil where it is none, or cannot be told.
	Self *docker.Self
	// Project is the Compose project that the agent serves; empty where it cannot be told.
	Project string
	History *runs.History

	said *said // a pointer: agents of single stacks are copies
	// loose: it, or its one volume, is of no project; who uses the volumes is found out
	// when they are read or restored.
	loose bool
	one   bool // it is one of several stacks: of their pass as a whole the ping is asked
}

// ErrSettings is wrapped by errors about what the user asked for.
var ErrSettings = snapshot.ErrUsage

// New finds out where the agent runs. Without an engine it goes on without; an engine
// that is named or mounted and does not answer is an error.
func New(ctx context.Context, s Settings) (*Agent, error) {
	a := &Agent{Settings: s, said: &said{}}
	if a.Log == nil {
		a.Log = slog.New(slog.DiscardHandler)
	}
	if a.Notice == nil {
		a.Notice = func(string) {}
	}
	if a.Now == nil {
		a.Now = time.Now
	}
	a.History = runs.Open("")
	if a.StateDir != "" && !IsWorker() { // of a worker, the agent notes what it did
		a.History = runs.Open(filepath.Join(a.StateDir, "runs"))
	}
	// Outside of a container there is no stack that is ours.
	var engine *docker.Engine
	err := docker.ErrNoEngine
	if a.inContainer() && !a.WithoutEngine {
		engine, err = docker.Connect(ctx, a.Notice)
	}
	switch {
	case errors.Is(err, docker.ErrNoEngine):
		err = nil
	case err != nil:
		return nil, err
	default:
		a.Engine = engine
		if err := a.lookAround(ctx); err != nil {
			_ = engine.Close()
			return nil, err
		}
	}
	a.Project = cmp.Or(os.Getenv(envProject), a.Project)
	a.Stack = cmp.Or(a.Stack, a.Project)
	a.loose = os.Getenv(envLoose) != "" || a.Engine != nil && a.Self != nil && a.Project == ""
	if a.Origin == "" {
		a.Origin, err = a.origin()
	}
	return a, err
}

// lookAround finds the own container and its project.
func (a *Agent) lookAround(ctx context.Context) error {
	self, err := a.Engine.Self(ctx)
	if errors.Is(err, docker.ErrNoContainer) {
		return nil
	}
	if err != nil {
		return err
	}
	a.Self, a.Project = self, self.Project
	return nil
}

// Close ends the connection to the engine.
func (a *Agent) Close() {
	if a.Engine != nil {
		_ = a.Engine.Close()
	}
}

// origin names this installation where the user did not: by the engine, else by
// a name that is made up once.
func (a *Agent) origin() (string, error) {
	if a.Engine != nil && a.Engine.ID != "" {
		return a.Engine.ID, nil
	}
	if a.StateDir == "" {
		return "", nil
	}
	path := filepath.Join(a.StateDir, "origin")
	if text, err := os.ReadFile(path); err == nil {
		if name := strings.TrimSpace(string(text)); name != "" {
			return name, nil
		}
	}
	name := newID()
	err := os.MkdirAll(a.StateDir, 0o700)
	if err == nil {
		err = os.WriteFile(path, []byte(name+"\n"), 0o600)
	}
	if err != nil {
		// The state may be lost at any time: then everything is read once more.
		a.Log.Warn("the name of this installation cannot be kept", "error", err)
	}
	return name, nil
}

func newID() string {
	var b [8]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// needStack is the error of whoever needs a stack's name and has none.
func (a *Agent) needStack() error {
	if a.Stack == "" {
		return fmt.Errorf("%w: no stack named; say --stack NAME, or set BACKUPD_STACK", ErrSettings)
	}
	return snapshot.CheckName("stack", a.Stack)
}

// VolumesDir is where volumes are mounted in the agent's container, each under
// its name.
const VolumesDir = "/volumes"

// mounted is the engine's name of what is mounted at a path here: a volume's
// name, or the path on the engine's machine.
func (a *Agent) mounted(path string) string {
	if a.Self == nil {
		return ""
	}
	m := a.Self.MountAt(path)
	if m == nil {
		return ""
	}
	return cmp.Or(m.Name, m.Source)
}

// mountedNames are the engine's names of those volumes that it has mounted here.
func (a *Agent) mountedNames(vols []snapshot.Source) (names []string) {
	for _, v := range vols {
		if name := a.mounted(v.Path); name != "" {
			names = append(names, name)
		}
	}
	return names
}
