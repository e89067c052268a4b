package testtree

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// SourceTree writes a tree like source code's to dir, which is made if it is not
// there: files small files in nested directories with 10 to 30 entries each, sizes
// log-normal with a median of about 5 KiB and a mean of about 20 KiB, text that
// zstd -3 makes 5 to 7 times smaller when tarred. It returns the size of all
// content in bytes.
func SourceTree(dir string, files int, seed uint64) (bytes int64, err error) {
	plan := planSource(files, newRand(seed, "source tree"))
	jobs := make(chan sourceDir)
	var sum struct {
		sync.Mutex
		bytes int64
		err   error
	}
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(func() {
			var buf []byte
			for d := range jobs {
				n, err := d.write(dir, seed, &buf)
				sum.Lock()
				sum.bytes += n
				sum.err = errors.Join(sum.err, err)
				sum.Unlock()
			}
		})
	}
	for _, d := range plan {
		jobs <- d
	}
	close(jobs)
	workers.Wait()
	return sum.bytes, sum.err
}

// sourceDir is a directory and the files that lie directly in it.
type sourceDir struct {
	path  string
	files []string
}

// planSource names all files. Directories branch up to six ways until there are
// enough of them.
func planSource(files int, rng *rand.Rand) []sourceDir {
	dirs := []sourceDir{{path: "."}}
	left := files
	for i := 0; left > 0; i++ {
		d := &dirs[i]
		for range min(left, 7+rng.IntN(17)) {
			d.files = append(d.files, sourceName(rng, len(d.files)))
			left--
		}
		parent := d.path
		names := map[string]bool{}
		for range 3 + rng.IntN(4) {
			name := wordList[rng.IntN(len(wordList))]
			if len(dirs) < files && !names[name] {
				names[name] = true
				dirs = append(dirs, sourceDir{path: filepath.Join(parent, name)})
			}
		}
	}
	for len(dirs) > 0 && len(dirs[len(dirs)-1].files) == 0 {
		dirs = dirs[:len(dirs)-1]
	}
	return dirs
}

func sourceName(rng *rand.Rand, n int) string {
	exts := []string{".go", ".go", ".ts", ".ts", ".ts", ".py", ".c", ".c", ".json", ".md"}
	ext := exts[rng.IntN(len(exts))]
	if rng.IntN(80) == 0 {
		ext = ".min.js"
	}
	name := wordList[rng.IntN(len(wordList))]
	if rng.IntN(2) == 0 {
		name += "_" + wordList[rng.IntN(len(wordList))]
	}
	return fmt.Sprintf("%s%d%s", name, n, ext)
}

func (d sourceDir) write(root string, seed uint64, buf *[]byte) (bytes int64, err error) {
	dir := filepath.Join(root, d.path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return 0, err
	}
	idents := vocabulary(d.path)
	for _, name := range d.files {
		path := filepath.Join(dir, name)
		rng := newRand(seed, filepath.Join(d.path, name))
		*buf = sourceText(rng, idents, sourceExt(name), logNormal(rng), *buf)
		if err := os.WriteFile(path, *buf, 0o644); err != nil {
			return bytes, err
		}
		bytes += int64(len(*buf))
		mtime := randomTime(rng)
		if err := os.Chtimes(path, time.Time{}, time.Unix(mtime.Sec, mtime.Nsec)); err != nil {
			return bytes, err
		}
	}
	return bytes, nil
}

// logNormal is a file's size: mean/median = exp(sigma^2/2) = 4.
func logNormal(rng *rand.Rand) int {
	const median, sigma = 5 << 10, 1.665
	return int(min(median*math.Exp(sigma*rng.NormFloat64()), 4<<20))
}

// sourceExt is the extension if it is one that SourceTree writes, else "".
func sourceExt(name string) string {
	if strings.HasSuffix(name, ".min.js") {
		return ".min.js"
	}
	if ext := filepath.Ext(name); templates[ext] != nil {
		return ext
	}
	return ""
}

// Incompressible writes files of random bytes to dir, fileSize each (the last one
// less), total bytes in all, sixteen to a directory.
func Incompressible(dir string, total, fileSize int64, seed uint64) error {
	if fileSize <= 0 {
		return fmt.Errorf("incompressible files of %d bytes", fileSize)
	}
	rng := newRand(seed, "incompressible")
	buf := make([]byte, min(fileSize, 1<<20))
	for i := 0; total > 0; i++ {
		sub := filepath.Join(dir, fmt.Sprintf("d%03d", i/16))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return err
		}
		size := min(fileSize, total)
		if err := writeRandom(filepath.Join(sub, fmt.Sprintf("%05d.bin", i)), size, rng, buf); err != nil {
			return err
		}
		total -= size
	}
	return nil
}

func writeRandom(path string, size int64, rng *rand.Rand, buf []byte) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for size > 0 {
		part := buf[:min(int64(len(buf)), size)]
		fillRandom(rng, part)
		if _, err := f.Write(part); err != nil {
			return err
		}
		size -= int64(len(part))
	}
	return nil
}
