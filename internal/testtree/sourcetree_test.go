package testtree

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSourceTreeResemblesSource(t *testing.T) {
	dir := t.TempDir()
	bytes, err := SourceTree(dir, 3000, 5)
	ok(t, err)
	paths, err := regularFiles(dir)
	ok(t, err)
	if len(paths) != 3000 {
		t.Fatalf("%d files, want 3000", len(paths))
	}
	var sum int64
	var all []int64
	for _, p := range paths {
		st, err := os.Stat(filepath.Join(dir, p))
		ok(t, err)
		sum, all = sum+st.Size(), append(all, st.Size())
	}
	if sum != bytes {
		t.Errorf("reported %d bytes, wrote %d", bytes, sum)
	}
	slices.Sort(all)
	if m := all[1500]; m < 4500 || m > 6000 {
		t.Errorf("median size %d", m)
	}
	if m := sum / 3000; m < 14<<10 || m > 27<<10 {
		t.Errorf("mean size %d", m)
	}
	if r := ratio(t, dir); r < 4.5 || r > 7 {
		t.Errorf("tar | zstd -3 makes it %.2f times smaller, want about 5.5", r)
	}
}

func TestGeneratorsAreDeterministic(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for _, dir := range []string{a, b} {
		_, err := SourceTree(dir+"/src", 300, 9)
		ok(t, err)
		ok(t, Incompressible(dir+"/inc", 1<<20, 300_000, 9))
		ok(t, Pages(dir+"/pages", 1<<20, 9))
		ok(t, ChurnPages(dir+"/pages", 0.1, 2))
		_, _, err = Churn(dir, 0.05, 2)
		ok(t, err)
	}
	for _, d := range diff(t, a, b, Options{}) {
		if !strings.Contains(d, ": mtime ") {
			t.Error(d)
		}
	}
}

func TestChurnRewritesTheFractionEvenly(t *testing.T) {
	dir := t.TempDir()
	_, err := SourceTree(dir+"/tree", 1000, 1)
	ok(t, err)
	ok(t, Incompressible(dir+"/tree/inc", 100_000, 1000, 1))
	Clone(t, dir+"/tree", dir+"/before")
	changed, bytes, err := Churn(dir+"/tree", 0.02, 4)
	ok(t, err)
	if len(changed) != 22 || bytes == 0 {
		t.Fatalf("changed %d files of 1100, %d bytes", len(changed), bytes)
	}
	content := map[string]bool{}
	for _, d := range diff(t, dir+"/before", dir+"/tree", Options{}) {
		path, _, _ := strings.Cut(strings.TrimPrefix(d, `"`), `"`)
		if strings.Contains(d, ": content ") || strings.Contains(d, ": size ") {
			content[path] = true
		}
	}
	for _, path := range changed {
		if !content[path] {
			t.Errorf("%s did not change", path)
		}
	}
	if len(content) != len(changed) {
		t.Errorf("%d files differ, want %d", len(content), len(changed))
	}
	paths, err := regularFiles(dir + "/tree")
	ok(t, err)
	for i := 1; i < len(changed); i++ {
		gap := slices.Index(paths, changed[i]) - slices.Index(paths, changed[i-1])
		if gap != 50 {
			t.Errorf("%d files between two changed ones, want 50", gap)
		}
	}
	other, _, err := Churn(dir+"/tree", 0.02, 5)
	ok(t, err)
	if slices.Equal(changed, other) {
		t.Error("another seed chose the same files")
	}
}

func TestPagesAndTheirChurn(t *testing.T) {
	dir := t.TempDir()
	ok(t, Pages(dir+"/table", 16<<20+5, 1))
	before, err := os.ReadFile(dir + "/table")
	ok(t, err)
	if len(before) != 16<<20 {
		t.Fatalf("%d bytes", len(before))
	}
	if r := ratio(t, dir); r < 3.5 || r > 5 {
		t.Errorf("zstd -3 makes pages %.2f times smaller, want about 4", r)
	}
	ok(t, ChurnPages(dir+"/table", 0.01, 7))
	after, err := os.ReadFile(dir + "/table")
	ok(t, err)
	differ := 0
	for at := 0; at < len(before); at += pageSize {
		if string(before[at:at+pageSize]) != string(after[at:at+pageSize]) {
			differ++
		}
	}
	if want := int(math.Round(16 << 20 / pageSize * 0.01)); differ != want || len(after) != len(before) {
		t.Errorf("%d pages differ, want %d", differ, want)
	}
}

// ratio is how many times smaller tar | zstd -3 makes a tree.
func ratio(t *testing.T, dir string) float64 {
	t.Helper()
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed")
	}
	count := func(cmd string) float64 {
		out, err := exec.Command("sh", "-c", cmd, "sh", dir).Output()
		ok(t, err)
		n, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
		ok(t, err)
		return n
	}
	return count(`tar c -C "$1" . | wc -c`) / count(`tar c -C "$1" . | zstd -3 | wc -c`)
}
