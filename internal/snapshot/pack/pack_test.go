package pack

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/klauspost/compress/zstd"
)

const testRun = "0123456789abcdef"

var testName = Name{Run: testRun, N: 3}

// content returns n bytes, half of which compress.
func content(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		if i>>12&1 == 0 {
			b[i] = byte(r.Uint32())
		} else {
			b[i] = byte(i)
		}
	}
	return b
}

// objects is a target in memory.
type objects struct {
	mu sync.Mutex
	m  map[Name][]byte
}

func (o *objects) put(_ context.Context, name Name, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.m == nil {
		o.m = map[Name][]byte{}
	}
	o.m[name] = slices.Clone(data)
	return nil
}

// onePack returns a pack of frames of that content.
func onePack(t testing.TB, raws ...[]byte) ([]byte, []Ref) {
	t.Helper()
	var o objects
	w := NewWriter(context.Background(), testRun, 1, o.put)
	enc := NewEncoder(Fast)
	var refs []Ref
	for _, raw := range raws {
		ref, err := w.Add(Sum(raw), len(raw), enc.Encode(nil, raw))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return o.m[Name{testRun, 0}], refs
}

var frameSizes = []int{0, 1, 2, 255, 256, 257, 4095, 64 << 10, 128<<10 + 1, 1 << 20, 3 << 20, MaxFrame}

func TestFramesOfEverySizeComeBack(t *testing.T) {
	for _, level := range []zstd.EncoderLevel{Fast, Dense} {
		enc := NewEncoder(level)
		for _, n := range frameSizes {
			for name, raw := range map[string][]byte{"mixed": content(n, 1), "zeros": make([]byte, n), "random": random(n)} {
				stored := enc.Encode(nil, raw)
				ref := Ref{ID: Sum(raw), Pack: testName, Len: uint32(len(stored)), Raw: uint32(n)}
				if frameLen(stored) != len(stored) {
					t.Errorf("%s, %d bytes: stored in %d, its blocks have %d", name, n, len(stored), frameLen(stored))
				}
				got, err := Decode(nil, stored, ref)
				if err != nil || !bytes.Equal(got, raw) {
					t.Errorf("%s, %d bytes: %v", name, n, err)
				}
				if len(stored) > maxEncoded {
					t.Errorf("%s, %d bytes: stored in %d, more than the format allows", name, n, len(stored))
				}
			}
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	var seed [32]byte
	rand.NewChaCha8(seed).Read(b)
	return b
}

func TestPacksAreParsedAsTheyWereWritten(t *testing.T) {
	var o objects
	w := NewWriter(context.Background(), testRun, 3, o.put)
	enc := NewEncoder(Fast)
	var refs []Ref
	for i := range 1500 {
		n := 1 + i*7%9000
		if i%40 == 0 {
			n = 1 << 20
		}
		raw := random(n)
		ref, err := w.Add(Sum(raw), n, enc.Encode(nil, raw))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	sizes, err := w.Flush()
	if err != nil {
		t.Fatal(err)
	}
	var parsed []Ref
	var total int64
	for i, size := range sizes {
		name := Name{testRun, uint32(i)}
		data := o.m[name]
		if len(data) != int(size) || size > MaxSize {
			t.Errorf("pack %d has %d bytes, told %d", i, len(data), size)
		}
		part, err := Parse(name, data)
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range part {
			if _, err := Decode(nil, data[ref.Off:][:ref.Len], ref); err != nil {
				t.Fatal(err)
			}
		}
		parsed = append(parsed, part...)
		total += int64(size)
	}
	if !slices.Equal(parsed, refs) || len(sizes) < 3 {
		t.Errorf("%d packs with %d frames, %d were added", len(sizes), len(parsed), len(refs))
	}
	if w.Stored() != total {
		t.Errorf("stored %d, sum of sizes %d", w.Stored(), total)
	}
	// The writer goes on after a flush, with the next number.
	if ref, err := w.Add(Sum([]byte("x")), 1, enc.Encode(nil, []byte("x"))); err != nil || ref.Pack.N != uint32(len(sizes)) {
		t.Errorf("after the flush: %v, %v", ref, err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// What is kept apart shares no pack with the rest, though one buffer less is
// free, and no number is given twice.
func TestFramesThatAreKeptApartHavePacksOfTheirOwn(t *testing.T) {
	for _, inFlight := range []int{1, 2} {
		var o objects
		w := NewWriter(context.Background(), testRun, inFlight, o.put)
		w.Size = 64 << 10
		enc := NewEncoder(Fast)
		of := map[Name]bool{} // whether it is of those apart
		refs := map[Name][]Ref{}
		for i := range 400 {
			raw := random(1 + i*7%9000)
			apart := i%3 == 0
			add := w.Add
			if apart {
				add = w.AddApart
			}
			ref, err := add(Sum(raw), len(raw), enc.Encode(nil, raw))
			if err != nil {
				t.Fatal(err)
			}
			if was, there := of[ref.Pack]; there && was != apart {
				t.Fatalf("pack %s has frames of both kinds", ref.Pack)
			}
			of[ref.Pack] = apart
			refs[ref.Pack] = append(refs[ref.Pack], ref)
			if i == 200 {
				if err := w.Rest(); err != nil {
					t.Fatal(err)
				}
			}
		}
		sizes, err := w.Flush()
		if err != nil {
			t.Fatal(err)
		}
		if len(sizes) != len(refs) || len(o.m) != len(refs) {
			t.Errorf("%d packs, %d of them put, %d told", len(refs), len(o.m), len(sizes))
		}
		for name, want := range refs {
			data := o.m[name]
			if got, err := Parse(name, data); err != nil || !slices.Equal(got, want) || sizes[name.N] != uint32(len(data)) {
				t.Errorf("pack %s of %d bytes, told %d: %d frames instead of %d, %v", name, len(data), sizes[name.N], len(got), len(want), err)
			}
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestManyTinyFramesFitThePack(t *testing.T) {
	var o objects
	w := NewWriter(context.Background(), testRun, 2, o.put)
	frame := NewEncoder(Fast).Encode(nil, []byte("x"))
	for range maxFrames + 10 {
		if _, err := w.Add(Sum([]byte("x")), 1, frame); err != nil {
			t.Fatal(err)
		}
	}
	sizes, err := w.Flush()
	if err != nil || len(sizes) != 2 {
		t.Fatalf("%d packs, %v", len(sizes), err)
	}
	if refs, err := Parse(Name{testRun, 0}, o.m[Name{testRun, 0}]); err != nil || len(refs) != maxFrames {
		t.Errorf("%d frames, %v", len(refs), err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func TestAWriterWithoutFramesPutsNothing(t *testing.T) {
	var o objects
	w := NewWriter(context.Background(), testRun, 2, o.put)
	if sizes, err := w.Flush(); err != nil || len(sizes) != 0 {
		t.Error(sizes, err)
	}
	if err := w.Close(); err != nil || len(o.m) != 0 {
		t.Error(len(o.m), err)
	}
}

// big is a frame of which few fit a pack.
func big() []byte { return NewEncoder(Fast).Encode(nil, random(MaxFrame)) }

func TestAFailedPutIsTheErrorOfEveryCallAfterIt(t *testing.T) {
	full := errors.New("disk full")
	frame := big()
	// Which of Add's ready cases is taken is chance: many times over.
	for range 20 {
		synctest.Test(t, func(t *testing.T) {
			puts := 0
			w := NewWriter(t.Context(), testRun, 2, func(context.Context, Name, []byte) error {
				puts++
				return full
			})
			var err error
			for range 20 {
				if _, aerr := w.Add(ID{}, MaxFrame, frame); aerr != nil {
					err = aerr
				}
				synctest.Wait()
			}
			if !errors.Is(err, full) {
				t.Errorf("Add: %v", err)
			}
			if _, err := w.Flush(); !errors.Is(err, full) {
				t.Errorf("Flush: %v", err)
			}
			if _, err := w.Add(ID{}, MaxFrame, frame); !errors.Is(err, full) {
				t.Errorf("Add after Flush: %v", err)
			}
			if err := w.Close(); !errors.Is(err, full) {
				t.Errorf("Close: %v", err)
			}
			if puts != 1 {
				t.Errorf("%d puts, though the first failed", puts)
			}
		}) // fails if a goroutine remains
	}
}

func TestCancellingEndsAWriterThatWaits(t *testing.T) {
	frame := big()
	synctest.Test(t, func(t *testing.T) {
		stop := errors.New("interrupted")
		ctx, cancel := context.WithCancelCause(t.Context())
		w := NewWriter(ctx, testRun, 1, func(ctx context.Context, _ Name, _ []byte) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		done := make(chan error)
		go func() {
			for {
				if _, err := w.Add(ID{}, MaxFrame, frame); err != nil {
					done <- err
					return
				}
			}
		}()
		synctest.Wait()
		cancel(stop)
		if err := <-done; !errors.Is(err, stop) {
			t.Errorf("Add: %v", err)
		}
		if _, err := w.Flush(); !errors.Is(err, stop) {
			t.Errorf("Flush: %v", err)
		}
		if err := w.Close(); !errors.Is(err, stop) {
			t.Errorf("Close: %v", err)
		}
	})
}

func TestAtMostTheAllowedPacksAreInMemory(t *testing.T) {
	const inFlight = 3
	frame := big()
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var mu sync.Mutex
		now, most := 0, 0
		buffers := map[*byte]bool{}
		w := NewWriter(t.Context(), testRun, inFlight, func(_ context.Context, _ Name, data []byte) error {
			mu.Lock()
			now++
			most = max(most, now)
			buffers[&data[:1][0]] = true
			mu.Unlock()
			<-gate
			mu.Lock()
			now--
			mu.Unlock()
			return nil
		})
		done := make(chan error)
		added := 0
		go func() {
			for range 60 {
				if _, err := w.Add(ID{}, MaxFrame, frame); err != nil {
					done <- err
					return
				}
				mu.Lock()
				added++
				mu.Unlock()
			}
			done <- nil
		}()
		synctest.Wait()
		if perPack := TargetSize / len(frame); added > (inFlight+1)*perPack {
			t.Errorf("%d frames were taken while no put returns", added)
		}
		close(gate)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if most > inFlight {
			t.Errorf("%d puts at a time", most)
		}
	})
}

func TestManyGoroutinesMayAdd(t *testing.T) {
	var o objects
	w := NewWriter(context.Background(), testRun, 2, o.put)
	enc := NewEncoder(Fast)
	refs := make([][]Ref, 8)
	var wg sync.WaitGroup
	for g := range refs {
		wg.Go(func() {
			for i := range 60 {
				raw := random(1 + i*3000)
				raw[0] = byte(g)
				ref, err := w.Add(Sum(raw), len(raw), enc.Encode(nil, raw))
				if err != nil {
					t.Error(err)
					return
				}
				refs[g] = append(refs[g], ref)
			}
		})
	}
	wg.Wait()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, list := range refs {
		if len(list) != 60 {
			t.Fatalf("%d frames", len(list))
		}
		for _, ref := range list {
			if _, err := Decode(nil, o.m[ref.Pack][ref.Off:][:ref.Len], ref); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func zstdCLI(t *testing.T) string {
	t.Helper()
	p, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("no zstd here")
	}
	return p
}

func TestTheZstdProgramReadsPacksAndRangesOfThem(t *testing.T) {
	cli := zstdCLI(t)
	raws := [][]byte{content(1000, 1), {}, random(200_000), make([]byte, MaxFrame), content(300_000, 2)}
	data, refs := onePack(t, raws...)
	file := filepath.Join(t.TempDir(), "pack.zst")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if msg, err := exec.Command(cli, "-t", file).CombinedOutput(); err != nil {
		t.Fatalf("zstd -t: %v\n%s", err, msg)
	}
	if out, err := exec.Command(cli, "-dc", file).Output(); err != nil || !bytes.Equal(out, bytes.Join(raws, nil)) {
		t.Errorf("zstd -dc of the pack: %d bytes, %v", len(out), err)
	}
	cmd := exec.Command(cli, "-dc")
	first, last := refs[1], refs[3]
	cmd.Stdin = bytes.NewReader(data[first.Off : last.Off+last.Len])
	if out, err := cmd.Output(); err != nil || !bytes.Equal(out, bytes.Join(raws[1:4], nil)) {
		t.Errorf("zstd -dc of frames 1 to 3: %d bytes, %v", len(out), err)
	}
}

func TestFrameHeadersThatDamageCouldHideInAreRefused(t *testing.T) {
	cli := zstdCLI(t)
	raw := content(200_000, 3)
	for _, args := range [][]string{{"-c", "--no-check"}, {"-c", "--no-content-size"}, {"-c", "--long"}} {
		cmd := exec.Command(cli, args...)
		cmd.Stdin = bytes.NewReader(raw)
		stored, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if frameLen(stored) != len(stored) {
			t.Errorf("zstd %v: %d bytes, its blocks have %d", args, len(stored), frameLen(stored))
		}
		if _, err := Decode(nil, stored, Ref{ID: Sum(raw), Pack: testName, Len: uint32(len(stored)), Raw: uint32(len(raw))}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("zstd %v: %v; want it refused", args, err)
		}
	}
}

func TestEveryFlippedBitOfAFrameIsSeen(t *testing.T) {
	for _, raw := range [][]byte{nil, content(300, 1), content(70_000, 2)} {
		stored := NewEncoder(Fast).Encode(nil, raw)
		ref := Ref{ID: Sum(raw), Pack: testName, Len: uint32(len(stored)), Raw: uint32(len(raw))}
		for i := range min(len(stored), 2000) {
			for bit := range 8 {
				stored[i] ^= 1 << bit
				if _, err := Decode(nil, stored, ref); err == nil {
					t.Errorf("%d bytes: byte %d, bit %d: not seen", len(raw), i, bit)
				}
				stored[i] ^= 1 << bit
			}
		}
	}
}

func TestEveryFlippedBitOfATableIsSeen(t *testing.T) {
	data, refs := onePack(t, []byte("one"), []byte("two"), []byte("three"))
	last := refs[len(refs)-1]
	for i := int(last.Off + last.Len); i < len(data); i++ {
		for bit := range 8 {
			data[i] ^= 1 << bit
			if got, err := Parse(testName, data); err == nil {
				same := true
				for k := range got {
					same = same && got[k].ID == refs[k].ID && got[k].Raw == refs[k].Raw
				}
				if same {
					t.Errorf("byte %d (%q), bit %d: not seen", i, data[i], bit)
				}
			}
			data[i] ^= 1 << bit
		}
	}
}

func TestPacksThatNoWriterWritesAreRefused(t *testing.T) {
	data, refs := onePack(t, []byte("one"), []byte("two"))
	end := int(refs[1].Off + refs[1].Len)
	frames, table := data[:end], data[end+8:]
	withTable := func(table []byte) []byte {
		b := binary.LittleEndian.AppendUint32(slices.Clone(frames), skippable)
		b = binary.LittleEndian.AppendUint32(b, uint32(len(table)))
		return append(b, table...)
	}
	lines := bytes.SplitAfter(table, []byte("\n"))
	for name, bad := range map[string][]byte{
		"empty":                nil,
		"no table":             frames,
		"cut table":            data[:len(data)-1],
		"bytes behind":         append(slices.Clone(data), 0),
		"empty table":          withTable(nil),
		"a line missing":       withTable(lines[0]),
		"a line too many":      withTable(append(slices.Clone(table), lines[0]...)),
		"lines swapped":        withTable(slices.Concat(lines[1], lines[0], nil)),
		"not JSON":             withTable([]byte("hello\n")),
		"unknown member":       withTable(bytes.Replace(table, []byte(`{"id"`), []byte(`{"x":1,"id"`), 1)),
		"short id":             withTable(bytes.Replace(table, []byte(`{"id":"`+refs[0].ID.String()), []byte(`{"id":"`+refs[0].ID.String()[1:]), 1)),
		"terabytes":            withTable(bytes.Replace(table, []byte(`"raw":3`), []byte(`"raw":4294967295`), 1)),
		"negative":             withTable(bytes.Replace(table, []byte(`"raw":3`), []byte(`"raw":-3`), 1)),
		"no zstd":              append([]byte("garbage garbage "), data...),
		"two values in a line": withTable(bytes.Replace(table, []byte("}\n"), []byte("} {}\n"), 1)),
		"a line without end":   withTable(bytes.Repeat([]byte("x"), 1<<20)),
	} {
		if name == "lines swapped" && refs[0].Len == refs[1].Len && refs[0].Raw == refs[1].Raw {
			continue // Decode sees that
		}
		if _, err := Parse(testName, bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestEveryFlippedBitOfAFrameIsRefusedOrHarmless(t *testing.T) {
	enc := NewEncoder(Fast)
	for _, raw := range [][]byte{{}, []byte("short"), content(3000, 1), random(700)} {
		stored := enc.Encode(nil, raw)
		ref := Ref{ID: Sum(raw), Pack: testName, Len: uint32(len(stored)), Raw: uint32(len(raw))}
		for i := range stored {
			for bit := range 8 {
				stored[i] ^= 1 << bit
				if got, err := Decode(nil, stored, ref); err == nil {
					if !bytes.Equal(got, raw) {
						t.Errorf("%d bytes: byte %d, bit %d: other content", len(raw), i, bit)
					}
					t.Logf("%d bytes: byte %d, bit %d means nothing", len(raw), i, bit)
				}
				stored[i] ^= 1 << bit
			}
		}
	}
}

func TestDecodeRefusesWhatIsNotTheFrame(t *testing.T) {
	enc := NewEncoder(Fast)
	raw := []byte("content")
	stored := enc.Encode(nil, raw)
	ref := Ref{ID: Sum(raw), Pack: testName, Len: uint32(len(stored)), Raw: uint32(len(raw))}
	skip := append(binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, skippable), 1), 'x')
	bomb := enc.Encode(nil, make([]byte, MaxFrame))
	long := streamed(t, make([]byte, 64<<20))
	for name, c := range map[string]struct {
		stored []byte
		change func(r *Ref)
	}{
		"another id":              {stored, func(r *Ref) { r.ID[0]++ }},
		"another length":          {stored, func(r *Ref) { r.Len++ }},
		"another size":            {stored, func(r *Ref) { r.Raw++ }},
		"cut":                     {stored[:len(stored)-1], func(r *Ref) { r.Len-- }},
		"two frames":              {append(slices.Clone(stored), stored...), func(r *Ref) { r.Len *= 2 }},
		"frame behind a skip":     {slices.Concat(skip, stored), func(r *Ref) { r.Len += uint32(len(skip)) }},
		"skip behind the frame":   {slices.Concat(stored, skip), func(r *Ref) { r.Len += uint32(len(skip)) }},
		"empty":                   {nil, func(r *Ref) { r.Len = 0 }},
		"more than a frame holds": {stored, func(r *Ref) { r.Raw = MaxFrame + 1 }},
		"larger than told":        {bomb, func(r *Ref) { r.Len = uint32(len(bomb)) }},
		"inflates without end":    {long, func(r *Ref) { r.Len = uint32(len(long)); r.Raw = MaxFrame }},
		"beyond the pack":         {stored, func(r *Ref) { r.Off = 1<<32 - 1 }},
	} {
		r := ref
		c.change(&r)
		if _, err := Decode(nil, c.stored, r); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// streamed compresses without telling the size in front.
func streamed(t testing.TB, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestDocumentsEndAtTheirLimit(t *testing.T) {
	doc := content(100_000, 9)
	for name, stored := range map[string][]byte{"sized": NewEncoder(Dense).Encode(nil, doc), "streamed": streamed(t, doc)} {
		if got, err := DecodeDocument(stored, 1<<20); err != nil || !bytes.Equal(got, doc) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := DecodeDocument(stored, 100_000); err != nil {
			t.Errorf("%s, as long as allowed: %v", name, err)
		}
		if _, err := DecodeDocument(stored, 99_999); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s, a byte too long: %v", name, err)
		}
	}
	bomb := streamed(t, make([]byte, 128<<20))
	for name, stored := range map[string][]byte{"one frame": bomb, "many frames": bytes.Repeat(bomb, 4)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := DecodeDocument(stored, 1<<20); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 32<<20 {
			t.Errorf("%s: %d bytes in memory for a document of at most 1 MiB", name, n)
		}
	}
}

func TestNamesOnlyOfOneForm(t *testing.T) {
	for _, n := range []Name{{testRun, 0}, {testRun, 1<<32 - 1}} {
		if got, err := ParseName(n.String()); err != nil || got != n {
			t.Errorf("%v: %v, %v", n, got, err)
		}
	}
	for _, s := range []string{"", "-", testRun, testRun + "-", testRun + "-01", testRun + "-+1", testRun + "--1", testRun + "-4294967296", testRun + "-1-2", strings.ToUpper(testRun) + "-1", testRun[1:] + "-1", "0123456789abcde/-1"} {
		if n, err := ParseName(s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q is %v, %v", s, n, err)
		}
	}
}

func FuzzPack(f *testing.F) {
	one, _ := onePack(f, []byte("one"), content(5000, 1), random(300))
	f.Add(one)
	f.Add(appendTable(nil, nil))
	f.Add(appendTable(streamed(f, []byte("s")), []TableEntry{{Sum([]byte("s")).String(), 14, 1}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		refs, err := Parse(testName, data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		pos := uint32(0)
		var table []TableEntry
		for _, r := range refs {
			if r.Off != pos || r.Check() != nil {
				t.Fatalf("reference %v at %d", r, pos)
			}
			pos += r.Len
			table = append(table, TableEntry{r.ID.String(), r.Len, r.Raw})
			_, _ = Decode(nil, data[r.Off:][:r.Len], r)
		}
		if !bytes.Equal(appendTable(slices.Clone(data[:pos]), table), data) {
			t.Fatal("accepted, but the references do not cover it, or the table is not canonical")
		}
	})
}

func FuzzDecode(f *testing.F) {
	enc := NewEncoder(Fast)
	for _, raw := range [][]byte{nil, []byte("one"), content(3000, 1), make([]byte, 100_000)} {
		f.Add(enc.Encode(nil, raw), uint32(len(raw)))
		f.Add(streamed(f, raw), uint32(len(raw)))
	}
	f.Fuzz(func(t *testing.T, stored []byte, raw uint32) {
		ref := Ref{Pack: testName, Len: uint32(len(stored)), Raw: raw}
		// The id cannot be guessed: take it from what a plain decoder makes of it.
		dec, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(MaxFrame), zstd.WithDecoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		defer dec.Close()
		plain, perr := dec.DecodeAll(stored, nil)
		ref.ID = Sum(plain)
		got, err := Decode(nil, stored, ref)
		switch {
		case err == nil && (perr != nil || !bytes.Equal(got, plain) || len(got) != int(raw)):
			t.Fatalf("accepted %d bytes of %d (%v)", len(got), raw, perr)
		case err == nil && frameLen(stored) != len(stored):
			t.Fatalf("accepted %d bytes, its blocks have %d", len(stored), frameLen(stored))
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Fatal(err)
		}
	})
}
