package testtree

import (
	"encoding/binary"
	"errors"
	"iter"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

var sizes = []int{
	0, 0, 1, 511, 512, 513, 1023, 1024, 1025, 4095, 4096, 4097, 10240, 65535, 65536, 65537,
	256<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 1<<20 + 1, 5<<20 + 3,
}

// oddNames are all legal, and each has broken some archiver.
var oddNames = []string{
	"new\nline", "\n", "trailing newline\n", "tab\tand\rreturn", "\xff\xfe not utf-8", "caf\xe9", "caf\u00e9", "cafe\u0301",
	"-leading-dash", "--checkpoint=1", "-", " ", " leading space", "trailing space ", "two  spaces",
	`back\slash`, `\`, `\n`, `\012`, `"double"`, `'single'`, "`back`", "$HOME", "$(id)", "*", "?", "[a]", "{a,b}", "!bang", "#hash", "~", "~root",
	".hidden", "...", "..x", ".wh.whiteout", ".wh..wh..opq", "%41", "100%", "a=b", "a:b", "a;b", "a|b", "a&b", "<>", "@", "@LongLink", "COM1", "nul.txt",
	"\x01\x02\x7f", "\u202eright-to-left", "\u65e5\u672c\u8a9e", "\U0001f4be", "PaxHeaders.0", "GNUSparseFile.0", "pax_global_header",
	strings.Repeat("l", 255), strings.Repeat("\xff", 255), strings.Repeat("\u65e5", 85),
	strings.Repeat("m", 99), strings.Repeat("m", 100), strings.Repeat("m", 101),
}

func ordinaryName(rng *rand.Rand) string {
	word := func() string { return wordList[rng.IntN(len(wordList))] }
	switch rng.IntN(6) {
	case 0:
		return word()
	case 1:
		return word() + "-" + word() + []string{".txt", ".tar.gz", ".d", "~", ".1"}[rng.IntN(5)]
	case 2:
		return word() + " " + word()
	case 3:
		return strings.ToUpper(word())
	default:
		return word() + "_" + word() + []string{"", ".go", ".conf", "2"}[rng.IntN(4)]
	}
}

var (
	fileModes     = []uint32{0o000, 0o400, 0o444, 0o555, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777, 0o4000, 0o111}
	dirModes      = []uint32{0o555, 0o1777, 0o2755, 0o2770, 0o700, 0o3775, 0o000, 0o4755}
	plainModes    = []uint32{0o444, 0o555, 0o777, 0o4755, 0o2755, 0o1644, 0o640}
	plainDirModes = []uint32{0o555, 0o1777, 0o2755, 0o777}
	owners        = []uint32{0, 1, 33, 1000, 65534, 65535, 65536, 1<<21 - 1, 1 << 21, 3_000_000, 1<<31 - 1, 1 << 31, 1<<32 - 2}
	mtimes        = []unix.Timespec{
		{},
		{Nsec: 1},
		{Sec: -1},
		{Sec: -1, Nsec: 999_999_999},
		{Sec: -86400 * 365 * 3, Nsec: 123_456_789},
		{Sec: -1 << 31},
		{Sec: 4_102_444_800, Nsec: 987_654_321},
		{Sec: 1<<31 - 1, Nsec: 5},
		{Sec: 1 << 31},
		{Sec: 1<<33 - 1, Nsec: 999_999_999},
		{Sec: 1_700_000_000},
		{Sec: 1_700_000_000, Nsec: 100_000_000},
		{Sec: 1_700_000_000, Nsec: 10},
		{Sec: 1_600_000_000, Nsec: 999_999_999},
	}
)

// metadata sets owner, mode, xattrs and mtime of everything: first each odd value
// once, then mostly ordinary ones. Directories come last, deepest first.
func (b *builder) metadata() {
	files, dirs, own := fileModes, dirModes, owners
	if b.o.NoRoot {
		files, dirs = plainModes, plainDirModes
	}
	order := b.rng.Perm(len(b.made))
	nth := map[uint32]int{}
	for _, i := range order {
		m := b.made[i]
		n := nth[m.kind]
		nth[m.kind]++
		st := b.stat(m.kind, n, own)
		st.Mode = m.kind | odd(b.rng, n, files, 0o644, 0o600, 0o755)
		b.set(m.path, &st, b.xattrs(m.kind, n))
	}
	for i := len(b.dirs) - 1; i >= 0; i-- {
		n := b.rng.IntN(3 * len(dirs))
		st := b.stat(unix.S_IFDIR, n, own)
		st.Mode = unix.S_IFDIR | odd(b.rng, n, dirs, 0o755, 0o755, 0o750)
		b.set(b.dirs[i], &st, b.xattrs(unix.S_IFDIR, n))
	}
}

// odd gives the n-th oddity, or when all were had mostly a usual value.
func odd[T any](rng *rand.Rand, n int, oddities []T, usual ...T) T {
	if n < len(oddities) {
		return oddities[n]
	}
	if rng.IntN(8) == 0 {
		return oddities[rng.IntN(len(oddities))]
	}
	return usual[rng.IntN(len(usual))]
}

func (b *builder) stat(kind uint32, n int, own []uint32) (st unix.Stat_t) {
	st.Uid, st.Gid = uint32(unix.Geteuid()), uint32(unix.Getegid())
	if !b.o.NoRoot {
		st.Uid = odd(b.rng, n, own, 0, 1000, 70)
		st.Gid = odd(b.rng, n+5, own, 0, 1000, 70)
	}
	st.Mtim = odd(b.rng, n, mtimes, randomTime(b.rng))
	return st
}

// randomTime is some nanosecond of the last fifteen years.
func randomTime(rng *rand.Rand) unix.Timespec {
	return unix.Timespec{Sec: 1_300_000_000 + rng.Int64N(460_000_000), Nsec: rng.Int64N(1_000_000_000)}
}

// xattrs gives the n-th set of attributes that an entry of this kind can have.
func (b *builder) xattrs(kind uint32, n int) map[string]string {
	binaryValue := make([]byte, 40)
	fillRandom(b.rng, binaryValue)
	var sets []map[string]string
	if kind == unix.S_IFREG || kind == unix.S_IFDIR {
		sets = []map[string]string{
			{"user.plain": "value"},
			{"user.eq=ual": "a=b", "user.per%cent": "50%", "user.enc%3Doded": "x", "user.%": "", "user.==": "="},
			{"user.binary": "\x00\x01\n\xff" + string(binaryValue), "user.newline": "a\nb\n"},
			{"user.empty": ""},
			{"user.large": strings.Repeat("v", 1500), "user.new\nline": "1", "user.sp ace": "2", "user.caf\xe9": "3"},
			{"system.posix_acl_access": acl(7, 1234, 4, 0)},
			{"system.posix_acl_access": acl(7, 3_000_000, 7, 5), "user.with.acl": "y"},
		}
	}
	if kind == unix.S_IFDIR {
		sets = append(sets, map[string]string{"system.posix_acl_default": acl(7, 99, 5, 0)},
			map[string]string{"system.posix_acl_default": acl(6, 1, 2, 3), "system.posix_acl_access": acl(7, 2, 5, 1)})
	}
	if !b.o.NoRoot {
		if kind == unix.S_IFREG {
			sets = append(sets, map[string]string{"security.capability": capability}, map[string]string{"security.capability": capability, "user.and": "more"})
		}
		sets = append(sets, map[string]string{"trusted.note": "root only", "trusted.a=b": string(binaryValue)})
	}
	switch {
	case len(sets) == 0:
		return nil
	case kind == unix.S_IFREG && n < 2*len(sets) && n%2 == 1: // each of them once, apart from the odd modes at times
		return sets[n/2]
	case kind == unix.S_IFREG && b.rng.IntN(6) > 0, kind != unix.S_IFREG && b.rng.IntN(2) > 0:
		return nil
	}
	return sets[b.rng.IntN(len(sets))]
}

// capability is cap_net_raw=ep, as the kernel stores it (struct vfs_cap_data, version 2).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is an access control list in the kernel's xattr encoding (struct
// posix_acl_xattr_entry): owner, one named user, group, mask rwx, others.
func acl(owner uint16, user uint32, group, others uint16) string {
	out := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, perm uint16, id uint32) {
		out = binary.LittleEndian.AppendUint16(out, tag)
		out = binary.LittleEndian.AppendUint16(out, perm)
		out = binary.LittleEndian.AppendUint32(out, id)
	}
	const nobody = 1<<32 - 1
	add(0x01, owner, nobody)
	add(0x02, 6, user)
	add(0x04, group, nobody)
	add(0x10, 7, nobody)
	add(0x20, others, nobody)
	return string(out)
}

// set is setMetadata that leaves out the xattrs which the file system cannot hold.
func (b *builder) set(path string, st *unix.Stat_t, xattrs map[string]string) {
	b.t.Helper()
	err := b.root.setMetadata(path, st, xattrs)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSPC) {
		if !b.warn {
			b.warn = true
			b.t.Logf("this file system does not hold every xattr: %v", err)
		}
		err = b.root.setMetadata(path, st, nil)
	}
	b.must(err)
}

// sorted goes through a map in the order of its keys.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, key := range slices.Sorted(maps.Keys(m)) {
			if !yield(key, m[key]) {
				return
			}
		}
	}
}
