package tarstream

import (
	"math/rand/v2"
	"slices"
	"testing"
)

func TestMergeExtentsFillsTheSmallestHoles(t *testing.T) {
	for _, c := range []struct {
		name  string
		in    []Extent
		limit int
		want  []Extent
	}{
		{"none", nil, 3, nil},
		{"fewer than the limit", []Extent{{0, 1}, {5, 1}}, 3, []Extent{{0, 1}, {5, 1}}},
		{"as many as the limit", []Extent{{0, 1}, {5, 1}}, 2, []Extent{{0, 1}, {5, 1}}},
		{"one too many", []Extent{{0, 1}, {5, 1}, {8, 1}}, 2, []Extent{{0, 1}, {5, 4}}},
		{"the first of equal holes", []Extent{{0, 1}, {2, 1}, {4, 1}}, 2, []Extent{{0, 3}, {4, 1}}},
		{"a limit of none keeps the data", []Extent{{7, 1}, {20, 3}}, 0, []Extent{{7, 16}}},
		{"a negative limit too", []Extent{{7, 1}, {20, 3}}, -1, []Extent{{7, 16}}},
		{"down to one", []Extent{{7, 1}, {20, 3}, {100, 10}}, 1, []Extent{{7, 103}}},
		{"neighbours merge into one", []Extent{{0, 1}, {2, 1}, {4, 1}, {100, 1}}, 2, []Extent{{0, 5}, {100, 1}}},
	} {
		in := slices.Clone(c.in)
		if got := MergeExtents(in, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("%s: its input was changed", c.name)
		}
	}
}

func TestMergedExtentsCoverTheDataAndNoMoreThanNeeded(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 1))
		var in []Extent
		pos := r.Int64N(3)
		for range 1 + r.IntN(60) {
			e := Extent{pos, 1 + r.Int64N(9)}
			in = append(in, e)
			pos = e.Offset + e.Length + 1 + r.Int64N(20)
		}
		limit := 1 + r.IntN(len(in)+3)
		out := MergeExtents(in, limit)
		if want := min(limit, len(in)); len(out) != want {
			t.Fatalf("seed %d: %d extents, limit %d of %d", seed, len(out), limit, len(in))
		}
		h := Header{Path: "f", Type: File, Size: pos, Sparse: out}
		if _, err := h.Append(nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		// Each input lies in one output, and no smaller choice of holes exists.
		var holes []int64
		for i := range len(in) - 1 {
			holes = append(holes, in[i+1].Offset-in[i].Offset-in[i].Length)
		}
		slices.Sort(holes)
		var want, got, data int64
		for _, n := range holes[:len(in)-len(out)] {
			want += n
		}
		for _, e := range in {
			data += e.Length
			if !slices.ContainsFunc(out, func(o Extent) bool {
				return o.Offset <= e.Offset && e.Offset+e.Length <= o.Offset+o.Length
			}) {
				t.Fatalf("seed %d: %v is lost", seed, e)
			}
		}
		for _, e := range out {
			got += e.Length
		}
		if got-data != want {
			t.Fatalf("seed %d: %d bytes of holes filled, %d are enough", seed, got-data, want)
		}
	}
}

func TestPaddingFillsBlocks(t *testing.T) {
	for n, want := range map[int64]int{0: 0, 1: 511, 511: 1, 512: 0, 513: 511, 1<<40 + 1: 511} {
		if got := Padding(n); got != want {
			t.Errorf("%d bytes: %d, want %d", n, got, want)
		}
	}
}

func TestMapSizeIsWhatAppendMapWrites(t *testing.T) {
	for _, h := range samples() {
		if h.Sparse == nil {
			continue
		}
		if got, want := h.mapSize(), int64(len(h.appendMap(nil))); got != want {
			t.Errorf("%.60q: %d, wrote %d", h.Path, got, want)
		}
	}
}
