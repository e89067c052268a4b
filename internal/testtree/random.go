package testtree

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// RandomOptions shape a random tree. The zero value gives about 200 entries with
// every feature but deep paths and sockets.
type RandomOptions struct {
	Files   int  // ordinary files beyond one of every oddity; 0 means 60, negative none
	Deep    bool // also paths of more than 4096 bytes, which tar and rsync cannot handle
	Sockets bool // also sockets, which no snapshot holds
	NoLarge bool // no file of 256 KiB or more, except for sparse ones
	NoRoot  bool // nothing that only root may make or read; implied for a plain user
}

// Random builds a tree in dir, which is made if it is not there and must be
// empty. On a file system that does not support an xattr it is left out and logged.
func Random(t testing.TB, dir string, seed uint64, o RandomOptions) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	removable(t, dir)
	if os.Geteuid() != 0 {
		o.NoRoot = true
	}
	if o.Files == 0 {
		o.Files = 60
	}
	b := &builder{t: t, root: r, rng: newRand(seed, "random"), o: o, dirs: []string{"."}, used: map[string]bool{}}
	b.build()
}

func newRand(seed uint64, purpose string) *rand.Rand {
	return rand.New(rand.NewPCG(seed, hash(purpose)))
}

// hash is FNV-1a.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

type builder struct {
	t    testing.TB
	root *root
	rng  *rand.Rand
	o    RandomOptions
	dirs []string // every directory, parents first
	made []made   // every first name of what is not a directory
	used map[string]bool
	warn bool // a missing feature was logged
}

type made struct {
	path string
	kind uint32
}

func (b *builder) must(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("build a random tree: %v", err)
	}
}

func (b *builder) build() {
	for range 6 + max(b.o.Files, 0)/6 {
		b.dir(b.fresh(ordinaryName(b.rng)))
	}
	b.sortingNames()
	for _, name := range oddNames {
		b.file(b.fresh(name), b.text(b.rng.IntN(3000)))
		if b.rng.IntN(3) == 0 {
			b.dir(b.fresh(name))
		}
	}
	for _, size := range sizes {
		if size < 256<<10 || !b.o.NoLarge {
			b.file(b.fresh(ordinaryName(b.rng)), b.text(size))
		}
	}
	for range b.o.Files {
		size := b.rng.IntN(1 << (1 + b.rng.IntN(14)))
		b.file(b.fresh(ordinaryName(b.rng)), b.text(size))
	}
	b.sparseFiles()
	b.symlinks()
	b.specials()
	if b.o.Deep {
		b.deep()
	}
	b.hardLinks()
	b.dir(b.fresh("empty"))
	b.dir(b.fresh("empty too"))
	b.metadata()
}

// fresh gives an unused path for a name in a random directory.
func (b *builder) fresh(name string) string {
	for try := 0; ; try++ {
		dir := b.dirs[b.rng.IntN(len(b.dirs))]
		path := join(dir, name)
		if !b.used[path] && len(path) < 3000 && path != "lost+found" {
			return path
		}
		if try > 20 && len(name) < 200 {
			name += "_"
		}
	}
}

func (b *builder) dir(path string) string {
	b.must(b.root.mkdir(path))
	b.used[path] = true
	b.dirs = append(b.dirs, path)
	return path
}

func (b *builder) file(path string, content []byte) string {
	f := b.create(path)
	_, err := f.Write(content)
	b.must(err)
	b.must(f.Close())
	return path
}

func (b *builder) create(path string) *os.File {
	f, err := b.root.openFile(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	b.must(err)
	b.note(path, unix.S_IFREG)
	return f
}

func (b *builder) note(path string, kind uint32) {
	b.used[path] = true
	b.made = append(b.made, made{path, kind})
}

// text gives content of some kind: random, repeating, all zero, or words.
func (b *builder) text(size int) []byte { return content(b.rng, size) }

func content(rng *rand.Rand, size int) []byte {
	out := make([]byte, size)
	switch rng.IntN(8) {
	case 0: // zeros that were written, not a hole
	case 1:
		for i := range out {
			out[i] = "0123456789abcdef\n"[i%17]
		}
	case 2, 3:
		fillRandom(rng, out)
	default:
		for i := 0; i < size; {
			i += copy(out[i:], wordList[rng.IntN(len(wordList))])
			if i < size {
				out[i] = " \n"[rng.IntN(9)/8]
				i++
			}
		}
	}
	return out
}

func fillRandom(rng *rand.Rand, out []byte) {
	for len(out) >= 8 {
		binary.LittleEndian.PutUint64(out, rng.Uint64())
		out = out[8:]
	}
	for i := range out {
		out[i] = byte(rng.Uint32())
	}
}

// sortingNames makes names whose order as bytes is not their order by component.
func (b *builder) sortingNames() {
	dir := b.dir(b.fresh("sorting"))
	for _, name := range []string{"a", "a.d", "b"} {
		b.dir(join(dir, name))
	}
	for _, name := range []string{"a/b", "a/-", "a-b", "a.b", "a b", "a0", "a.d/x", "a\x01", "A", "b/a", "b-"} {
		b.file(join(dir, name), b.text(b.rng.IntN(2000)))
	}
}

func (b *builder) sparseFiles() {
	const mib = 1 << 20
	type part struct{ at, n int }
	for name, parts := range sorted(map[string][]part{
		"leading hole":  {{2 * mib, 70000}},
		"middle hole":   {{0, 5000}, {mib + 4096, 9000}},
		"trailing hole": {{0, 100}, {3 * mib, 0}},
		"all hole":      {{5*mib + 1, 0}},
		"many holes":    {{0, 4096}, {128 << 10, 4096}, {256 << 10, 1}, {512 << 10, 4097}, {mib, 30}, {4*mib + 7, 0}},
		"small hole":    {{0, 10}, {20000, 10}},
		"one byte, far": {{256*mib - 1, 1}},
	}) {
		if b.o.NoLarge && name == "one byte, far" {
			continue
		}
		f := b.create(b.fresh(name))
		for _, p := range parts {
			if p.n == 0 {
				b.must(f.Truncate(int64(p.at)))
				continue
			}
			data := make([]byte, p.n)
			fillRandom(b.rng, data)
			_, err := f.WriteAt(data, int64(p.at))
			b.must(err)
		}
		b.must(f.Close())
	}
}

func (b *builder) symlinks() {
	dir := b.dirs[b.rng.IntN(len(b.dirs))]
	for name, text := range sorted(map[string]string{
		"relative":         "../" + ordinaryName(b.rng),
		"to sibling":       b.made[b.rng.IntN(len(b.made))].path,
		"dangling":         "no/such/thing",
		"absolute":         "/etc/passwd",
		"absolute dir":     "/tmp",
		"to root":          "/",
		"to itself":        "to itself",
		"dot":              ".",
		"up":               "../../../..",
		"to dir":           dir,
		"of 99 bytes":      strings.Repeat("x", 99),
		"of 100 bytes":     strings.Repeat("x", 100),
		"of 101 bytes":     strings.Repeat("x", 101),
		"of 1000 bytes":    strings.Repeat("0123456789/", 91)[:1000],
		"odd text":         "new\nline \xff\xfe \\ '\" $(x)",
		"trailing slashes": "a//b///",
	}) {
		b.symlink(b.fresh(name), text)
	}
}

func (b *builder) symlink(path, text string) {
	b.must(b.root.symlink(text, path))
	b.note(path, unix.S_IFLNK)
}

func (b *builder) specials() {
	b.node("fifo", unix.S_IFIFO, 0)
	b.node("another fifo", unix.S_IFIFO, 0)
	if !b.o.NoRoot {
		b.node("null", unix.S_IFCHR, unix.Mkdev(1, 3))
		b.node("zero:zero", unix.S_IFCHR, unix.Mkdev(0, 0)) // what overlay file systems take for a whiteout
		b.node("loop", unix.S_IFBLK, unix.Mkdev(7, 200))
		b.node("large numbers", unix.S_IFBLK, unix.Mkdev(259, 70000))
	}
	if b.o.Sockets {
		b.node("socket", unix.S_IFSOCK, 0)
		b.node("socket.2", unix.S_IFSOCK, 0)
	}
}

func (b *builder) node(name string, kind uint32, dev uint64) {
	path := b.fresh(name)
	b.must(b.root.mknod(path, kind|0o600, dev))
	b.note(path, kind)
}

// hardLinks gives entries of every kind second and third names, elsewhere.
func (b *builder) hardLinks() {
	counts := map[uint32]int{unix.S_IFREG: 6 + max(b.o.Files, 0)/20, unix.S_IFLNK: 2, unix.S_IFIFO: 1, unix.S_IFCHR: 1, unix.S_IFBLK: 1}
	link := func(path string) {
		for n := range 1 + b.rng.IntN(2) {
			to := b.fresh(fmt.Sprintf("link%d-%s", n, ordinaryName(b.rng)))
			b.must(b.root.link(path, to))
			b.used[to] = true
		}
	}
	link(b.file(b.fresh("empty-linked"), nil))
	link(b.file(b.fresh("zz-linked-late"), b.text(100)))
	link(b.file(b.fresh("!linked-early"), b.text(5000)))
	for _, i := range b.rng.Perm(len(b.made)) {
		if m := b.made[i]; counts[m.kind] > 0 && len(m.path) < 3000 {
			counts[m.kind]--
			link(m.path)
		}
	}
}

// deep makes a chain of directories whose path has more than 5000 bytes, with
// entries of every kind along and at the end of it.
func (b *builder) deep() {
	path := b.dir(b.fresh("deep"))
	for level := range 26 {
		path = b.dir(path + "/" + strings.Repeat(string(rune('a'+level)), 195))
		if level%6 == 5 {
			b.file(path+"/on the way", b.text(b.rng.IntN(3000)))
		}
	}
	b.file(path+"/"+strings.Repeat("n", 255), b.text(40000))
	b.symlink(path+"/symlink", "../x")
	b.must(b.root.mknod(path+"/fifo", unix.S_IFIFO|0o600, 0))
	b.note(path+"/fifo", unix.S_IFIFO)
	b.dir(path + "/empty")
	shallow := b.file(b.fresh("linked from the deep"), b.text(1234))
	b.must(b.root.link(shallow, path+"/hard link"))
	low := b.file(path+"/linked", b.text(4321))
	b.must(b.root.link(low, path+"/linked again"))
	b.must(b.root.link(low, parent(path)+"/linked above"))
}
