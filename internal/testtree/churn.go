package testtree

import (
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
)

// Churn rewrites a fraction (0 to 1; more than 0 means at least one file) of the
// regular files below dir with new content of a similar kind and, within a tenth,
// of the same size, and leaves their mtimes at now. The files are spread evenly
// over the sorted list of paths, and another seed chooses others. It returns their
// paths, relative to dir, and the size of all that was written in bytes.
//
// Files named as SourceTree names them get text of the same vocabulary, all
// others random bytes; for databases see ChurnPages.
func Churn(dir string, fraction float64, seed uint64) (changed []string, bytes int64, err error) {
	paths, err := regularFiles(dir)
	if err != nil || len(paths) == 0 || fraction <= 0 {
		return nil, 0, err
	}
	rng := newRand(seed, "churn")
	var text []byte
	var idents []string
	last := ""
	buf := make([]byte, 1<<20)
	for _, i := range spread(len(paths), fraction, rng.Float64()) {
		path := paths[i]
		full := filepath.Join(dir, path)
		st, err := os.Lstat(full)
		if err != nil {
			return changed, bytes, err
		}
		rng := newRand(seed, path)
		size := st.Size() + int64(float64(st.Size())*(rng.Float64()-0.5)/5)
		if ext := sourceExt(path); ext != "" {
			if d := filepath.Dir(path); d != last || idents == nil {
				last, idents = d, vocabulary(d)
			}
			text = sourceText(rng, idents, ext, int(size), text)
			size, err = int64(len(text)), os.WriteFile(full, text, 0o644)
		} else {
			err = writeRandom(full, size, rng, buf)
		}
		if err != nil {
			return changed, bytes, err
		}
		changed, bytes = append(changed, path), bytes+size
	}
	return changed, bytes, nil
}

func regularFiles(dir string) ([]string, error) {
	var paths []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		relative, err := filepath.Rel(dir, path)
		paths = append(paths, relative)
		return err
	})
	slices.Sort(paths)
	return paths, err
}

// spread chooses a fraction of the numbers below n at even distances; phase (0 to 1)
// is where in the first distance it begins.
func spread(n int, fraction, phase float64) []int {
	count := min(max(int(math.Round(fraction*float64(n))), 1), n)
	chosen := make([]int, count)
	for i := range chosen {
		chosen[i] = min(int((float64(i)+phase)*float64(n)/float64(count)), n-1)
	}
	return chosen
}
