package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/teststack"
	"github.com/disko/backupd/internal/testtree"
)

// inspected is what the tests ask of an image.
type inspected struct {
	Architecture string
	Variant      string
	Os           string
	Config       struct {
		User        string
		Entrypoint  []string
		Cmd         []string
		Labels      map[string]string
		Volumes     map[string]struct{}
		Healthcheck struct {
			Test                           []string
			Interval, Timeout, StartPeriod int64 // ns
		}
	}
}

func inspect(t *testing.T, image string) inspected {
	t.Helper()
	var out []inspected
	if err := json.Unmarshal([]byte(teststack.Docker(t, "image", "inspect", image)), &out); err != nil {
		t.Fatal(err)
	}
	return out[0]
}

// files returns what lies in an image, by name; regular files with their bytes.
func files(t *testing.T, image string) (headers map[string]*tar.Header, contents map[string][]byte) {
	t.Helper()
	id := teststack.Docker(t, "create", "--network", "none", image)
	t.Cleanup(func() { _ = exec.Command("docker", "rm", "-fv", id).Run() })
	headers, contents = map[string]*tar.Header{}, map[string][]byte{}
	cmd := exec.CommandContext(t.Context(), "docker", "export", id)
	stream, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		headers[name], contents[name] = h, b
	}
}

func TestImageServesAndSaysWhetherItIsHealthy(t *testing.T) {
	i := inspect(t, teststack.BackupdImage(t))
	c := i.Config
	if !slices.Equal(c.Entrypoint, []string{"/backupd"}) || !slices.Equal(c.Cmd, []string{"serve"}) {
		t.Errorf("it runs %v %v", c.Entrypoint, c.Cmd)
	}
	h := c.Healthcheck
	if !slices.Equal(h.Test, []string{"CMD", "/backupd", "health"}) || h.Interval != 2e9 || h.StartPeriod != 24*3600e9 {
		t.Errorf("health check %+v: others start 2 s after a seed, which may take a day", h)
	}
	if len(c.Volumes) != 0 {
		t.Errorf("it declares volumes %v, whose anonymous ones would hold the state and lose it", c.Volumes)
	}
	for _, label := range []string{"title", "description", "source", "documentation", "licenses", "version", "revision"} {
		if _, ok := c.Labels["org.opencontainers.image."+label]; !ok {
			t.Errorf("no label org.opencontainers.image.%s", label)
		}
	}
	if v := c.Labels["org.opencontainers.image.version"]; v != "test" {
		t.Errorf("label version is %q", v)
	}
}

func TestImageHoldsAStaticBinaryAndNothingElse(t *testing.T) {
	headers, contents := files(t, teststack.BackupdImage(t))
	binary, err := elf.NewFile(bytes.NewReader(contents["backupd"]))
	if err != nil {
		t.Fatal(err)
	}
	if libs, err := binary.ImportedLibraries(); err != nil || len(libs) > 0 {
		t.Errorf("the binary asks for libraries: %v %v", libs, err)
	}
	for _, s := range binary.Progs {
		if s.Type == elf.PT_INTERP {
			t.Error("the binary asks for a dynamic linker")
		}
	}
	if h := headers["usr/bin/backupd"]; h == nil || h.Linkname != "../../backupd" {
		t.Errorf("backupd is not in PATH for docker compose exec: %+v", h)
	}
	if h := headers["var/lib/backupd"]; h == nil || h.Mode&0o7777 != 0o1777 {
		t.Errorf("the state directory is not for every user: %+v", h)
	}
	if h := headers["volumes"]; h == nil || h.Mode&0o7777 != 0o755 || h.Uid != 0 {
		t.Errorf("the directory of volumes: %+v", h)
	}
	for name, h := range headers {
		if h.Typeflag == tar.TypeReg && h.Size > 0 && name != "backupd" {
			t.Errorf("%s is in the image", name)
		}
	}
}

func TestImageIsSmall(t *testing.T) {
	const compressed, unpacked = 12e6, 30e6 // docs/adr/0021-image.md
	saved, err := exec.CommandContext(t.Context(), "docker", "save", teststack.BackupdImage(t)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	w := gzip.NewWriter(&gz)
	if _, err := w.Write(saved); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f MB compressed, %.1f MB unpacked", float64(gz.Len())/1e6, float64(len(saved))/1e6)
	if gz.Len() > compressed || len(saved) > unpacked {
		t.Errorf("%d bytes compressed, %d unpacked", gz.Len(), len(saved))
	}
}

func TestImagesForOtherPlatformsSayAndHoldWhatTheyAreFor(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary for two other platforms")
	}
	teststack.Engine(t)
	name := "backupd:" + teststack.Unique("platforms")
	for _, p := range []struct {
		name, arch, variant string
		machine             elf.Machine
	}{
		{"arm64", "arm64", "", elf.EM_AARCH64},
		{"armv7", "arm", "v7", elf.EM_ARM},
		{"amd64", "amd64", "", elf.EM_X86_64},
	} {
		image := name + "-" + p.name
		if native := teststack.Docker(t, "version", "-f", "{{.Server.Arch}}"); native == p.arch {
			image = name
		}
		tool(t, "tools/image", "IMAGE="+name, "PLATFORMS="+p.name, "HOSTGO=1")
		t.Cleanup(func() { _ = exec.Command("docker", "rmi", image).Run() })
		i := inspect(t, image)
		if i.Os != "linux" || i.Architecture != p.arch || i.Variant != p.variant {
			t.Errorf("%s says it is for %s/%s/%s", image, i.Os, i.Architecture, i.Variant)
		}
		if !slices.Equal(i.Config.Entrypoint, []string{"/backupd"}) {
			t.Errorf("%s lost its entry point: %v", image, i.Config.Entrypoint)
		}
		_, contents := files(t, image)
		binary, err := elf.NewFile(bytes.NewReader(contents["backupd"]))
		if err != nil {
			t.Fatal(err)
		}
		if binary.Machine != p.machine {
			t.Errorf("%s holds a binary for %v", image, binary.Machine)
		}
	}
}

// What the README says: docker build, with nothing but a builder image.
func TestDockerfileBuildsAsUsersBuildIt(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the binary in a container")
	}
	golang := teststack.Images(t, "golang")[0]
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	image := "backupd:" + teststack.Unique("dockerfile")
	// The host's network, because a test machine's containers may have none.
	if _, err := teststack.Try(t, root, "build", "--force-rm", "--network", "host", "--build-arg", "GO_IMAGE="+golang, "--build-arg", "VERSION=9.9", "-t", image, "."); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("docker", "rmi", image).Run() })
	if out := teststack.Docker(t, "run", "--rm", "--network", "none", image, "version"); !strings.HasPrefix(out, "backupd 9.9 ") {
		t.Errorf("version: %s", out)
	}
	got, _ := files(t, image)
	want, _ := files(t, teststack.BackupdImage(t))
	for name, h := range want {
		g := got[name]
		if g == nil || g.Mode != h.Mode || g.Uid != h.Uid || g.Gid != h.Gid || g.Typeflag != h.Typeflag {
			t.Errorf("%s: the Dockerfile makes %+v, tools/image %+v", name, g, h)
		}
	}
	if g, w := inspect(t, image).Config, inspect(t, teststack.BackupdImage(t)).Config; !slices.Equal(g.Cmd, w.Cmd) || !slices.Equal(g.Healthcheck.Test, w.Healthcheck.Test) {
		t.Errorf("the Dockerfile makes %+v, tools/image %+v", g, w)
	}
}

func tool(t *testing.T, name string, env ...string) {
	t.Helper()
	root, err := teststack.Root()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, name))
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// capabilities is the list of configs/: what a service that seeds, restores and
// backs up needs beyond nothing.
var capabilities = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP"}

// ownedTree has an entry for each capability that restoring it takes.
func ownedTree(t *testing.T, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	entry := func(name string, mode uint32, uid, gid int) {
		t.Helper()
		check(os.MkdirAll(filepath.Dir(path(name)), 0o755))
		check(os.WriteFile(path(name), []byte(name), 0o600))
		check(os.Chown(path(name), uid, gid))
		check(unix.Chmod(path(name), mode))
	}
	entry("private/key", 0o600, 1000, 1000)
	check(unix.Setxattr(path("private/key"), "user.note", []byte("text"), 0))
	check(os.Chown(path("private"), 1000, 1000))
	check(os.Chmod(path("private"), 0o700))
	entry("closed/file", 0o400, 7, 7)
	check(os.Chown(path("closed"), 7, 7))
	check(os.Chmod(path("closed"), 0o500))
	entry("set-ids", 0o6755, 999, 998)
	entry("capable", 0o755, 0, 0)
	var cap [20]byte // VFS_CAP_REVISION_2, effective, CAP_NET_BIND_SERVICE
	binary.LittleEndian.PutUint32(cap[0:], 0x02000001)
	binary.LittleEndian.PutUint32(cap[4:], 1<<10)
	check(unix.Setxattr(path("capable"), "security.capability", cap[:], 0))
	if !teststack.Rootless(t) {
		check(unix.Mknod(path("device"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	}
	check(os.Chown(dir, 33, 33))
}

// sandbox runs backupd in the image with a read-only root, and no capabilities
// but the named. It returns what was printed.
func sandbox(t *testing.T, caps []string, args ...string) (string, error) {
	t.Helper()
	docker := []string{"run", "--rm", "--network", "none", "--read-only", "--security-opt", "no-new-privileges", "--cap-drop", "ALL"}
	for _, c := range caps {
		docker = append(docker, "--cap-add", c)
	}
	cmd := exec.CommandContext(t.Context(), "docker", append(docker, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestImageNeedsTheseCapabilitiesAndNoOthers(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes other users' files, which takes root")
	}
	image := teststack.BackupdImage(t)
	source, repo := t.TempDir(), t.TempDir()
	ownedTree(t, source)
	backup := func(caps ...string) (string, error) {
		return sandbox(t, caps, "-v", source+":/volumes/data:ro", "-v", repo+":/backups", "-v", t.TempDir()+":/var/lib/backupd",
			"-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_STACK=test", image, "backup")
	}
	// Only reading: the example of an agent that does not restore.
	if out, err := backup("DAC_READ_SEARCH"); err != nil {
		t.Fatalf("with DAC_READ_SEARCH alone: %v\n%s", err, out)
	}
	if out, err := backup(); err == nil || !strings.Contains(out, "private: not read: permission denied") {
		t.Errorf("with no capability, other users' files were read: %v\n%s", err, out)
	}
	if out, err := backup(capabilities...); err != nil {
		t.Fatalf("with all of %v: %v\n%s", capabilities, err, out)
	}

	restore := func(t *testing.T, caps []string) (differences []string, out string, err error) {
		dir := t.TempDir()
		out, err = sandbox(t, caps, "-v", dir+":/volumes/data", "-v", repo+":/backups:ro", "-v", t.TempDir()+":/var/lib/backupd",
			"-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_STACK=test", image, "restore")
		differences, derr := testtree.Diff(source, dir, testtree.Options{})
		if derr != nil {
			t.Fatal(derr)
		}
		return differences, out, err
	}
	if differences, out, err := restore(t, capabilities); err != nil || len(differences) > 0 {
		t.Fatalf("with all of %v: %v\n%s\n%s", capabilities, err, out, strings.Join(differences, "\n"))
	}
	for _, without := range capabilities {
		if without == "MKNOD" && teststack.Rootless(t) {
			continue // it allows nothing there
		}
		t.Run("without "+without, func(t *testing.T) {
			rest := slices.DeleteFunc(slices.Clone(capabilities), func(c string) bool { return c == without })
			differences, _, err := restore(t, rest)
			if len(differences) == 0 {
				t.Errorf("all was restored: %s is not needed", without)
			}
			t.Logf("%v; first difference: %s", err, strings.Join(differences[:min(1, len(differences))], ""))
		})
	}
}

// As whoever owns the files, nothing is needed at all, and the state volume that
// Docker makes is writable.
func TestImageRunsAsAPlainUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes another user's files, which takes root")
	}
	image := teststack.BackupdImage(t)
	source, repo, fresh := t.TempDir(), t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{source, filepath.Join(source, "file"), repo, fresh} {
		if err := os.Chown(path, 1000, 1000); err != nil {
			t.Fatal(err)
		}
	}
	state := teststack.Unique("backupd-image-state")
	t.Cleanup(func() { _ = exec.Command("docker", "volume", "rm", "-f", state).Run() })
	run := func(volume, command string) {
		t.Helper()
		out, err := sandbox(t, nil, "--user", "1000:1000", "-v", volume, "-v", repo+":/backups", "-v", state+":/var/lib/backupd",
			"-e", "BACKUPD_TARGET=/backups", "-e", "BACKUPD_STACK=test", "-e", "BACKUPD_STATE_DIR=/var/lib/backupd", image, command)
		if err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	run(source+":/volumes/data:ro", "backup")
	run(fresh+":/volumes/data", "restore")
	testtree.Compare(t, source, fresh, testtree.Options{})
	if out := teststack.Docker(t, "run", "--rm", "--network", "none", "-v", state+":/state:ro", teststack.Images(t, "base")[0], "find", "/state", "-user", "1000", "-type", "f"); out == "" {
		t.Error("no state was kept in the volume")
	}
}
