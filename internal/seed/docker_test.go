package seed_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/targets/directory"
	"github.com/disko/backupd/internal/testtree"
)

// engine is what the tests on a real engine share: an image whose /data has
// content and whose /empty has an owner, and a repository with a snapshot of
// volumes db and uploads.
type engine struct {
	image   string
	target  string
	volumes map[string]string // what the snapshot's volumes must look like
}

var shared = sync.OnceValues(func() (*engine, error) {
	dir, err := os.MkdirTemp("", "seed-engine-")
	if err != nil {
		return nil, err
	}
	e := &engine{image: "backupd:test-seed", target: filepath.Join(dir, "target"), volumes: map[string]string{}}
	if err := e.build(dir); err != nil {
		return nil, err
	}
	return e, e.snapshot(dir)
})

func TestMain(m *testing.M) {
	code := m.Run()
	if started {
		if e, err := shared(); err == nil {
			os.RemoveAll(filepath.Dir(e.target))
			_ = exec.Command("docker", "rmi", e.image).Run()
		}
	}
	os.Exit(code)
}

var started bool

func docker(args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.Command("docker", args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("docker %s: %w\n%s", strings.Join(args, " "), err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

func (e *engine) build(dir string) error {
	agent := filepath.Join(dir, "agent")
	cmd := exec.Command("go", "build", "-o", agent, "./testdata/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w\n%s", err, out)
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		return err
	}
	var image bytes.Buffer
	w := tar.NewWriter(&image)
	made := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	add := func(h tar.Header, content []byte) {
		h.Size, h.ModTime = int64(len(content)), made
		err = errors.Join(err, w.WriteHeader(&h))
		_, werr := w.Write(content)
		err = errors.Join(err, werr)
	}
	add(tar.Header{Name: "agent", Mode: 0o755}, program)
	add(tar.Header{Name: "data/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 70, Gid: 70}, nil)
	add(tar.Header{Name: "data/conf.d/", Typeflag: tar.TypeDir, Mode: 0o755, Uid: 70, Gid: 70}, nil)
	add(tar.Header{Name: "data/conf.d/default", Mode: 0o644, Uid: 70, Gid: 70}, []byte("of the image"))
	add(tar.Header{Name: "data/index", Mode: 0o644}, []byte("of the image"))
	add(tar.Header{Name: "data/link", Typeflag: tar.TypeSymlink, Linkname: "index"}, nil)
	add(tar.Header{Name: "empty/", Typeflag: tar.TypeDir, Mode: 0o700, Uid: 70, Gid: 70}, nil)
	if err = errors.Join(err, w.Close()); err != nil {
		return err
	}
	cmd = exec.Command("docker", "import", "-", e.image)
	cmd.Stdin = &image
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("docker import: %w\n%s", err, out)
	}
	return nil
}

func (e *engine) snapshot(dir string) error {
	ctx := context.Background()
	if err := os.Mkdir(e.target, 0o755); err != nil {
		return err
	}
	var sources []snapshot.Source
	for _, name := range []string{"db", "uploads"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Join(path, "sub", "deep"), 0o755); err != nil {
			return err
		}
		for i, f := range []string{"a", "sub/b", "sub/deep/c", "z"} {
			content := make([]byte, 3<<20+i) // so that one read does not bring them all
			rand.Read(content)
			if err := os.WriteFile(filepath.Join(path, f), append(content, name...), 0o640); err != nil {
				return err
			}
		}
		if err := errors.Join(os.Link(filepath.Join(path, "a"), filepath.Join(path, "hard")), os.Symlink("a", filepath.Join(path, "soft"))); err != nil {
			return err
		}
		e.volumes[name] = path
		sources = append(sources, snapshot.Source{Name: name, Path: path})
	}
	st, err := directory.Open(e.target)
	if err != nil {
		return err
	}
	repo, err := snapshot.Ensure(ctx, st, snapshot.Options{})
	if err != nil {
		return err
	}
	defer repo.Close()
	_, err = repo.Backup(ctx, st, snapshot.BackupOptions{Stack: "shop", Volumes: sources})
	return err
}

// project is a Compose project's part of an engine, made by the same calls in the same
// order as Compose's: volumes, then all containers, then the starts.
type project struct {
	t    *testing.T
	e    *engine
	name string
	// mounts are, by the volume's name, what `-v` mounts: a volume of the engine, or a directory.
	mounts map[string]string
	state  string            // the same, of the state directory
	apps   map[string]string // by volume, the directory of the image that a service mounts it at
	target string
	env    []string
	flags  []string // more of the backup service's
	// readOnly is ":ro" where the backup service mounts volumes so.
	readOnly string
	made     []string // volumes to remove in the end
}

func newProject(t *testing.T) *project {
	t.Helper()
	if testing.Short() {
		t.Skip("containers take seconds")
	}
	if out, err := exec.Command("docker", "info").CombinedOutput(); err != nil || os.Geteuid() != 0 {
		msg := fmt.Sprintf("needs root and a Docker engine: %v\n%s", err, out)
		if os.Getenv("CI") != "" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	started = true
	e, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	var id [4]byte
	rand.Read(id[:])
	p := &project{
		t: t, e: e, name: "seedtest-" + hex.EncodeToString(id[:]), target: e.target,
		apps: map[string]string{"db": "/data", "uploads": "/empty"},
	}
	p.state = p.name + "_state"
	p.mounts = map[string]string{"db": p.name + "_db", "uploads": p.name + "_uploads"}
	t.Cleanup(func() {
		p.down()
		for _, v := range p.made {
			_, _ = docker("volume", "rm", "-f", v)
		}
	})
	return p
}

func (p *project) must(args ...string) string {
	p.t.Helper()
	out, err := docker(args...)
	if err != nil {
		p.t.Fatal(err)
	}
	return out
}

func (p *project) volume(name string, opts ...string) {
	p.t.Helper()
	if strings.HasPrefix(name, "/") || name == "" {
		return
	}
	p.must(append(append([]string{"volume", "create"}, opts...), name)...)
	p.made = append(p.made, name)
}

func exists(container string) bool {
	_, err := docker("inspect", "--type", "container", container)
	return err == nil
}

// create makes volumes and containers that are missing.
func (p *project) create() {
	p.t.Helper()
	for _, v := range p.mounts {
		p.volume(v)
	}
	p.volume(p.state)
	p.createBackup("backup")
	for vol := range p.apps {
		p.createApp(vol)
	}
}

func (p *project) createBackup(service string) {
	p.t.Helper()
	if exists(p.name + "_" + service) {
		return
	}
	args := []string{"create", "--name", p.name + "_" + service, "-v", p.target + ":/target:ro"}
	if p.state != "" {
		args = append(args, "-v", p.state+":/state")
	} else {
		args = append(args, "-v", "/state")
	}
	for vol, what := range p.mounts {
		args = append(args, "-v", what+":/volumes/"+vol+p.readOnly)
	}
	for _, e := range p.env {
		args = append(args, "-e", e)
	}
	args = append(args, p.flags...)
	p.must(append(args, p.e.image, "/agent")...)
}

func (p *project) createApp(vol string) {
	p.t.Helper()
	if !exists(p.name + "_" + vol) {
		p.must("create", "--name", p.name+"_"+vol, "-v", p.mounts[vol]+":"+p.apps[vol], p.e.image, "/agent", "app")
	}
}

// runApp lets a service write into its volume, wherever that is mounted.
func (p *project) runApp(vol string) {
	p.t.Helper()
	p.must("run", "--rm", "--name", p.name+"_once", "-v", p.mounts[vol]+":/data", p.e.image, "/agent", "app")
}

// result is what the agent printed.
type result struct {
	seed.Result
	Container string
	Window    seed.Window
	failed    bool
	stderr    string
}

func (p *project) startService(service string) result {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command("docker", "start", "-a", p.name+"_"+service)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	r := result{failed: err != nil, stderr: errs.String()}
	if jerr := json.Unmarshal(out.Bytes(), &r); jerr != nil {
		p.t.Errorf("the agent said no JSON: %v\n%s\n%s", jerr, out.String(), errs.String())
	}
	for _, line := range r.Lines() {
		p.t.Log(line)
	}
	return r
}

// up is docker compose up; the services write only where the backup service let them start.
func (p *project) up() result {
	p.t.Helper()
	p.create()
	return p.start()
}

// start is docker compose start, or what is left to do of up.
func (p *project) start() result {
	p.t.Helper()
	return p.startService("backup")
}

// down is docker compose down, -v where volumes are named.
func (p *project) down(volumes ...string) {
	p.t.Helper()
	list, err := docker("ps", "-aq", "--filter", "name=^"+p.name+"_")
	if err == nil && list != "" {
		p.must(append([]string{"rm", "-f", "-v"}, strings.Fields(list)...)...)
	}
	for _, v := range volumes {
		p.must("volume", "rm", v)
	}
}

func (p *project) downWithVolumes() {
	p.t.Helper()
	p.down(p.mounts["db"], p.mounts["uploads"], p.state)
}

// again is an up after the backup service's settings were changed: Compose makes it anew.
func (p *project) again(env ...string) result {
	p.t.Helper()
	p.must("rm", "-f", p.name+"_backup")
	p.env = env
	return p.up()
}

func (p *project) path(vol string) string {
	p.t.Helper()
	if strings.HasPrefix(p.mounts[vol], "/") {
		return p.mounts[vol]
	}
	return p.must("volume", "inspect", "-f", "{{.Mountpoint}}", p.mounts[vol])
}

func (p *project) want(r result, outcomes map[string]seed.Outcome) {
	p.t.Helper()
	for _, v := range r.Volumes {
		if want, ok := outcomes[v.Name]; ok && v.Outcome != want {
			p.t.Errorf("volume %s: %s, because it %s; want %s", v.Name, v.Outcome, v.Why, want)
		}
	}
	if len(r.Volumes) != len(p.mounts) {
		p.t.Errorf("the result has %d volumes of %d", len(r.Volumes), len(p.mounts))
	}
}

func both(o seed.Outcome) map[string]seed.Outcome {
	return map[string]seed.Outcome{"db": o, "uploads": o}
}

// holdsSnapshot says whether a volume is what the snapshot has.
func (p *project) holdsSnapshot(vol string, but ...string) {
	p.t.Helper()
	testtree.Compare(p.t, p.e.volumes[vol], p.path(vol), testtree.Options{Ignore: func(path string) bool {
		for _, b := range but {
			if path == b {
				return true
			}
		}
		return false
	}})
}

// untouched runs f and compares a volume before and after.
func (p *project) untouched(vol string, f func()) {
	p.t.Helper()
	before := filepath.Join(p.t.TempDir(), "before")
	testtree.Clone(p.t, p.path(vol), before)
	f()
	testtree.Compare(p.t, before, p.path(vol), testtree.Options{})
}

func TestAFreshStackIsSeededOverWhatTheImageCopiedIn(t *testing.T) {
	p := newProject(t)
	p.create()
	if _, err := os.Stat(filepath.Join(p.path("db"), "conf.d", "default")); err != nil {
		t.Fatalf("the engine copied nothing in: %v", err)
	}
	r := p.start()
	p.want(r, both(seed.Filled))
	if id := p.must("inspect", "-f", "{{.Id}}", p.name+"_backup"); r.Container != id {
		t.Errorf("own container is %q, want %q", r.Container, id)
	}
	p.holdsSnapshot("db")
	p.holdsSnapshot("uploads")
	p.must("start", "-a", p.name+"_db")

	// stop, start
	p.untouched("db", func() { p.want(p.start(), both(seed.Left)) })
	// down, up
	p.down()
	p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
	// down -v, up
	p.downWithVolumes()
	p.want(p.up(), both(seed.Filled))
	p.holdsSnapshot("db")
	p.holdsSnapshot("uploads")
}

func TestBackupdAddedToAStackTouchesNothing(t *testing.T) {
	for _, when := range []string{"while it runs", "right after down", "after down, and its services are made anew first"} {
		t.Run(when, func(t *testing.T) {
			p := newProject(t)
			p.volume(p.mounts["db"])
			p.volume(p.mounts["uploads"])
			p.createApp("db")
			p.createApp("uploads")
			p.must("start", "-a", p.name+"_db")
			if when != "while it runs" {
				p.down()
			}
			if strings.HasSuffix(when, "first") {
				p.createApp("db")
				p.createApp("uploads")
			}
			p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
			// The empty one, by name.
			p.untouched("db", func() {
				p.want(p.again("NAMED=uploads"), map[string]seed.Outcome{"db": seed.Left, "uploads": seed.Filled})
			})
			p.holdsSnapshot("uploads")
		})
	}
}

func TestAnExternalVolumeFullOfDataOutlivesDownV(t *testing.T) {
	p := newProject(t)
	p.want(p.up(), both(seed.Filled))
	p.runApp("db")
	p.down(p.mounts["uploads"], p.state) // db is external
	p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
}

func TestOneVolumeOfTwoProjects(t *testing.T) {
	a, b := newProject(t), newProject(t)
	b.mounts["db"] = a.mounts["db"]
	a.want(a.up(), both(seed.Filled))
	a.must("start", "-a", a.name+"_db")
	a.untouched("db", func() { b.want(b.up(), both(seed.Left)) })
	b.down()
	a.down()
	// Whoever comes second may have made its containers first.
	b.create()
	a.untouched("db", func() {
		a.want(a.up(), both(seed.Left))
		b.want(b.start(), both(seed.Left))
	})
}

func TestTwoProjectsThatShareAVolumeAndStartAtOnceSeedItOnce(t *testing.T) {
	a, b := newProject(t), newProject(t)
	b.mounts["db"] = a.mounts["db"]
	delete(a.mounts, "uploads")
	delete(a.apps, "uploads")
	b.mounts, b.apps = a.mounts, a.apps
	a.create()
	b.create()
	ra, rb := atOnce(a.start, b.start)
	if ra.failed || rb.failed {
		t.Errorf("failed: %v, %v\n%s%s", ra.Error, rb.Error, ra.stderr, rb.stderr)
	}
	if n := ra.Count(seed.Filled) + rb.Count(seed.Filled); n != 1 {
		t.Errorf("%d of the two seeded", n)
	}
	a.holdsSnapshot("db")
}

func atOnce(a, b func() result) (ra, rb result) {
	var wg sync.WaitGroup
	wg.Go(func() { ra = a() })
	wg.Go(func() { rb = b() })
	wg.Wait()
	return ra, rb
}

func TestTwoReplicasSeedOnce(t *testing.T) {
	p := newProject(t)
	for _, v := range p.mounts {
		p.volume(v)
	}
	p.volume(p.state)
	p.createBackup("backup2") // before the services that depend on it, as Compose does
	p.create()
	ra, rb := atOnce(p.start, func() result { return p.startService("backup2") })
	if ra.failed || rb.failed {
		t.Errorf("failed: %v, %v", ra.Error, rb.Error)
	}
	if a, b := ra.Count(seed.Filled), rb.Count(seed.Filled); a+b != 2 || a*b != 0 {
		t.Errorf("one seeded %d volumes, the other %d", a, b)
	}
	p.holdsSnapshot("db")
	p.holdsSnapshot("uploads")
}

func TestDriverOptsThatBindADirectory(t *testing.T) {
	cases := map[string]struct {
		file    string // in the directory before
		mounted string // where the service has it in the image
		want    seed.Outcome
	}{
		"full":  {"mine", "/empty", seed.Left},
		"empty": {"", "/empty", seed.Filled},
		// Of a directory that may be anybody's nobody can tell who put the files there.
		"image copied in": {"", "/data", seed.Left},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := newProject(t)
			dir := t.TempDir()
			if c.file != "" {
				if err := os.WriteFile(filepath.Join(dir, c.file), []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p.apps["db"] = c.mounted
			p.volume(p.mounts["db"], "--opt", "type=none", "--opt", "o=bind", "--opt", "device="+dir)
			p.create()
			if c.want == seed.Filled {
				p.want(p.start(), both(seed.Filled))
				testtree.Compare(t, p.e.volumes["db"], dir, testtree.Options{})
				return
			}
			before := filepath.Join(t.TempDir(), "before")
			testtree.Clone(t, dir, before)
			p.want(p.start(), both(c.want))
			testtree.Compare(t, before, dir, testtree.Options{})
		})
	}
}

// A service without depends_on may have written before the backup service starts.
func TestAServiceThatDoesNotWaitKeepsItsData(t *testing.T) {
	p := newProject(t)
	p.create()
	p.must("start", "-a", p.name+"_db")
	p.untouched("db", func() { p.want(p.start(), both(seed.Left)) })
}

func TestAFreshVolumeThatIsMountedReadOnlyIsSaid(t *testing.T) {
	p := newProject(t)
	p.readOnly = ":ro"
	r := p.up()
	if !r.failed || !strings.Contains(r.stderr, "remove `:ro`") {
		t.Errorf("failed=%v: %s", r.failed, r.stderr)
	}
	p.readOnly = ""
	p.want(p.again(), both(seed.Filled))
}

func TestABindMountIsFreshOnlyIfNothingLiesThere(t *testing.T) {
	p := newProject(t)
	dir := t.TempDir()
	p.mounts["db"] = dir
	p.apps = nil
	for _, f := range []string{"cloned", ".gitkeep"} {
		if err := os.WriteFile(filepath.Join(dir, f), []byte("of the project"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
	p.down(p.mounts["uploads"], p.state)
	if err := os.Remove(filepath.Join(dir, "cloned")); err != nil {
		t.Fatal(err)
	}
	p.want(p.up(), both(seed.Filled))
	p.holdsSnapshot("db", ".gitkeep")
	if b, _ := os.ReadFile(filepath.Join(dir, ".gitkeep")); string(b) != "of the project" {
		t.Errorf(".gitkeep is %q", b)
	}
}

func TestAStateVolumeThatIsLostLeavesDataAlone(t *testing.T) {
	p := newProject(t)
	p.want(p.up(), both(seed.Filled))
	p.down(p.state)
	p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
	p.runApp("db")
	// An anonymous one, which up -V renews.
	p.down(p.state)
	p.state = ""
	p.untouched("db", func() { p.want(p.up(), both(seed.Left)) })
}

func TestAnAnonymousStateVolumeIsEnoughForAFreshStack(t *testing.T) {
	p := newProject(t)
	p.state = ""
	p.want(p.up(), both(seed.Filled))
	p.holdsSnapshot("db")
}

func TestANewVolumeOfAnOldNameIsSeeded(t *testing.T) {
	p := newProject(t)
	p.want(p.up(), both(seed.Filled))
	p.runApp("uploads")
	p.down(p.mounts["db"])
	p.untouched("uploads", func() {
		p.want(p.up(), map[string]seed.Outcome{"db": seed.Filled, "uploads": seed.Left})
	})
	p.holdsSnapshot("db")
}

func TestHalfTheVolumesPresentAndNotOurs(t *testing.T) {
	p := newProject(t)
	p.volume(p.mounts["uploads"])
	p.runApp("uploads")
	p.untouched("uploads", func() { p.want(p.up(), both(seed.Left)) })
	if _, err := os.Stat(filepath.Join(p.path("db"), "index")); err != nil {
		t.Errorf("the fresh volume was changed: %v", err)
	}
}

func TestASeedThatFailedIsDoneByTheNextUp(t *testing.T) {
	for _, how := range []string{"UNREACHABLE=1", "BROKEN=1"} {
		t.Run(how, func(t *testing.T) {
			p := newProject(t)
			p.env = []string{how}
			r := p.up()
			if how == "UNREACHABLE=1" {
				if !r.failed || !strings.Contains(r.stderr, "refused") {
					t.Errorf("failed=%v: %s", r.failed, r.stderr)
				}
				lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
				if last := lines[len(lines)-1]; !strings.Contains(last, "refused") {
					t.Errorf("the last line is no reason: %s", last)
				}
			}
			p.want(r, both(seed.Fresh))
			p.want(p.again(), both(seed.Filled))
			p.holdsSnapshot("db")
			p.holdsSnapshot("uploads")
		})
	}
}

func TestAServiceThatWasStartedAfterAFailedSeedKeepsItsData(t *testing.T) {
	p := newProject(t)
	p.env = []string{"UNREACHABLE=1"}
	p.up()
	p.must("start", "-a", p.name+"_db") // up --no-deps db
	p.untouched("db", func() {
		p.want(p.again(), map[string]seed.Outcome{"db": seed.Unsure, "uploads": seed.Left})
	})
	p.untouched("db", func() { p.want(p.again(), both(seed.Left)) })
}

// killed starts seeding, and kills it in the middle of db.
func (p *project) killed() {
	p.t.Helper()
	p.env = []string{"HANG=2"}
	p.create()
	p.must("start", p.name+"_backup")
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := docker("logs", p.name+"_backup")
		if err != nil || time.Now().After(deadline) {
			p.t.Fatalf("the agent does not hang: %v\n%s", err, out)
		}
		if strings.Contains(out, "hanging") {
			break
		}
	}
	p.must("kill", "-s", "KILL", p.name+"_backup")
	if _, err := os.Stat(filepath.Join(p.path("db"), ".backupd-incomplete")); err != nil {
		p.t.Fatalf("no mark: %v", err)
	}
}

func TestASeedThatWasKilledIsGoneOnWith(t *testing.T) {
	for _, then := range []string{"start", "up with other settings", "down, up", "state lost"} {
		t.Run(then, func(t *testing.T) {
			p := newProject(t)
			p.killed()
			var r result
			switch then {
			case "down, up":
				p.down()
				p.env = nil
				r = p.up()
			case "state lost":
				p.down(p.state)
				p.env = nil
				r = p.up()
				// Of uploads nobody knows any more that it was fresh; it is empty.
			case "start":
				r = p.start()
			default:
				r = p.again()
			}
			p.want(r, both(seed.Filled))
			p.holdsSnapshot("db")
			p.holdsSnapshot("uploads")
		})
	}
}

func TestHalfASeedThatAServiceWroteToIsAnError(t *testing.T) {
	p := newProject(t)
	p.killed()
	p.runApp("db")
	p.untouched("db", func() {
		r := p.again()
		p.want(r, map[string]seed.Outcome{"db": seed.Unsure, "uploads": seed.Fresh})
		if !r.failed || !strings.Contains(r.stderr, "restore --volume db=/volumes/db --force") {
			t.Errorf("failed=%v: %s", r.failed, r.stderr)
		}
	})
}

func TestWithoutASnapshotTheProjectsDataAreItsOwn(t *testing.T) {
	p := newProject(t)
	full := p.target
	p.target = t.TempDir()
	p.want(p.up(), both(seed.Left))
	p.target = full
	// Even of what is still empty nobody knows what the project makes of it.
	p.untouched("uploads", func() { p.want(p.again(), both(seed.Left)) })
	p.want(p.again("NAMED=uploads"), map[string]seed.Outcome{"db": seed.Left, "uploads": seed.Filled})
}

func TestRequireAsksForASnapshot(t *testing.T) {
	p := newProject(t)
	full := p.target
	p.target = t.TempDir()
	p.env = []string{"MODE=require"}
	r := p.up()
	if !r.failed || !strings.Contains(r.stderr, "require") {
		t.Errorf("failed=%v: %s", r.failed, r.stderr)
	}
	p.target = full
	p.want(p.again("MODE=require"), both(seed.Filled))
}

func TestATargetThatIsAwayDoesNotMatterToAStackWithData(t *testing.T) {
	p := newProject(t)
	p.want(p.up(), both(seed.Filled))
	r := p.again("UNREACHABLE=1")
	if r.failed {
		t.Error(r.Error)
	}
	p.want(r, both(seed.Left))
}

func TestTheEngineCanVeto(t *testing.T) {
	p := newProject(t)
	p.env = []string{"VETO=db:shop-worker-1"}
	p.create()
	p.untouched("db", func() {
		if r := p.start(); !strings.Contains(strings.Join(r.Lines(), "\n"), "shop-worker-1 has started") {
			t.Error(r.Lines())
		}
	})
}

func TestTheWindowIsKnownWhateverTheContainerIsCalled(t *testing.T) {
	for _, flag := range []string{"--hostname=other", "--network=host", "--network=none"} {
		t.Run(flag, func(t *testing.T) {
			p := newProject(t)
			p.flags = []string{flag}
			r := p.up()
			p.want(r, both(seed.Filled))
			if id := p.must("inspect", "-f", "{{.Id}}", p.name+"_backup"); r.Container != id {
				t.Errorf("own container is %q, want %q", r.Container, id)
			}
			again := p.start()
			if again.Window != r.Window {
				t.Errorf("a restart moved the window from %v to %v", r.Window, again.Window)
			}
		})
	}
}

// A plain user cannot look into a directory of the database's. That it may be empty
// must not let the stack start without its data.
func TestAVolumeThatCannotBeReadIsAnErrorAndNoVerdict(t *testing.T) {
	p := newProject(t)
	p.flags = []string{"--user=1000:1000"}
	p.state = t.TempDir()
	for dir := p.state; dir != os.TempDir(); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	r := p.up()
	if !r.failed || !strings.Contains(r.stderr, "cannot be looked through") || !strings.Contains(r.stderr, "BACKUPD_SEED=off") {
		t.Errorf("failed=%v: %s", r.failed, r.stderr)
	}
	if rec, err := seed.Records(p.state, "shop"); len(rec) > 0 || err != nil {
		t.Errorf("%v, %v", rec, err)
	}
	p.flags = []string{"--user=0:0"}
	// The window has moved, so that what the image copied into db is in doubt now; uploads is empty.
	p.want(p.again("NAMED=uploads"), map[string]seed.Outcome{"uploads": seed.Filled})
}

func TestSeedingThatIsOffWritesNothing(t *testing.T) {
	p := newProject(t)
	p.env = []string{"MODE=off"}
	p.create()
	p.untouched("db", func() { p.want(p.start(), both(seed.Left)) })
	names, err := os.ReadDir(p.must("volume", "inspect", "-f", "{{.Mountpoint}}", p.state))
	if err != nil || len(names) > 0 {
		t.Errorf("the state directory has %v, %v", names, err)
	}
}
