//go:build linux

package tree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/snapshot/tarstream"
)

// eachWay runs a test with openat2 and, as on kernels without it, by single components.
func eachWay(t *testing.T, test func(t *testing.T, d *Dest, root string)) {
	t.Helper()
	for _, walks := range []bool{false, true} {
		t.Run(map[bool]string{false: "openat2", true: "walks"}[walks], func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			ok(t, os.Mkdir(root, 0o755))
			test(t, mustOpen(t, root, DestOptions{}, walks), root)
		})
	}
}

func mustOpen(t testing.TB, root string, o DestOptions, walks bool) *Dest {
	t.Helper()
	d, err := openDest(root, o, walks)
	ok(t, err)
	t.Cleanup(func() { ok(t, d.Close()) })
	return d
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refused(t testing.TB, what string, err error) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error", what)
	}
}

func stat(t testing.TB, d *Dest, p string) Stat {
	t.Helper()
	st, err := d.Lstat(p)
	ok(t, err)
	return st
}

// head is a header of the user who runs the tests.
func head(p string, typ tarstream.Type, mode uint32) *tarstream.Header {
	return &tarstream.Header{Path: p, Type: typ, Mode: mode, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mtime: tarstream.Time{Sec: 1e9, Nsec: 7}}
}

func file(p string) *tarstream.Header { return head(p, tarstream.File, 0o644) }

func symlink(p, text string) *tarstream.Header {
	h := head(p, tarstream.Symlink, 0o777)
	h.Link = text
	return h
}

// check compares what is there with a header.
func check(t testing.TB, d *Dest, h *tarstream.Header) {
	t.Helper()
	st := stat(t, d, h.Path)
	if st.Type != h.Type || st.Mode != h.Mode || st.UID != h.UID || st.GID != h.GID || st.Mtime != h.Mtime || st.Major != h.Major || st.Minor != h.Minor {
		t.Errorf("%.80s: is %+v, want %+v", h.Path, st, *h)
	}
	x, err := d.Xattrs(h.Path)
	ok(t, err)
	if fmt.Sprint(x) != fmt.Sprint(h.Xattrs) {
		t.Errorf("%.80s: attributes are %v, want %v", h.Path, x, h.Xattrs)
	}
	if h.Type == tarstream.Symlink {
		if text, err := d.Readlink(h.Path); err != nil || text != h.Link {
			t.Errorf("%s: text is %q (%v), want %q", h.Path, text, err, h.Link)
		}
	}
}

func read(t testing.TB, d *Dest, p string) []byte {
	t.Helper()
	f, err := d.OpenRead(p)
	ok(t, err)
	defer f.Close()
	b, err := io.ReadAll(f)
	ok(t, err)
	return b
}

func acl(named uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, ^uint32(0)}, {2, 6, named}, {4, 5, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 0, ^uint32(0)}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return b
}

// netBind is CAP_NET_BIND_SERVICE as security.capability.
var netBind = []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

func TestEveryTypeGetsItsMetadata(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, _ string) {
		old := tarstream.Time{Sec: -5, Nsec: 123456789}
		trusted := []tarstream.Xattr{{Name: "trusted.t", Value: []byte("x\x00y")}}
		created, err := d.Mkdir("d")
		ok(t, err)
		if !created {
			t.Error("Mkdir: created is false")
		}
		created, err = d.Mkdir("d")
		ok(t, err)
		if created {
			t.Error("Mkdir of what is there: created is true")
		}
		if st := stat(t, d, "d"); st.Mode != 0o700 {
			t.Errorf("unfinished directory has mode %o", st.Mode)
		}
		for _, replace := range []bool{false, true} {
			var all []*tarstream.Header
			for i, mode := range []uint32{0o644, 0o4755, 0o2755, 0o6711, 0o1666, 0o777, 0, 0o444} {
				for _, uid := range []uint32{0, 1234} {
					h := &tarstream.Header{Path: fmt.Sprintf("d/f%d-%d", i, uid), Type: tarstream.File, Mode: mode, UID: uid, GID: 5678, Mtime: old, Size: 3}
					ok(t, d.WriteSmall(h, []byte("abc"), replace))
					if got := read(t, d, h.Path); string(got) != "abc" {
						t.Errorf("content %q", got)
					}
					all = append(all, h)
				}
			}
			h := &tarstream.Header{Path: "d/x", Type: tarstream.File, Mode: 0o4770, UID: 1, GID: 2, Mtime: old, Xattrs: []tarstream.Xattr{
				{Name: "security.capability", Value: netBind},
				{Name: "system.posix_acl_access", Value: acl(99)},
				{Name: "trusted.a", Value: []byte{}},
				{Name: "user.a=b", Value: bytes.Repeat([]byte{0xff}, 600)},
			}}
			ok(t, d.WriteSmall(h, nil, replace))
			all = append(all, h)
			h = symlink("d/l", strings.Repeat("../x", 500))
			h.UID, h.Mtime, h.Xattrs = 77, old, trusted
			ok(t, d.Symlink(h, replace))
			all = append(all, h)
			for p, typ := range map[string]tarstream.Type{"d/p": tarstream.Fifo, "d/c": tarstream.Char, "d/b": tarstream.Block} {
				h := &tarstream.Header{Path: p, Type: typ, Mode: 0o666, UID: 8, GID: 9, Mtime: old, Xattrs: trusted}
				if typ != tarstream.Fifo {
					h.Major, h.Minor = 300, 70000
				}
				ok(t, d.Special(h, replace))
				all = append(all, h)
			}
			for _, holder := range []string{"d/x", "d/l", "d/p"} {
				h := &tarstream.Header{Path: holder + "-link", Type: tarstream.Link, Link: holder}
				ok(t, d.Link(h, replace))
				if replace { // a second name of the same file
					ok(t, d.Link(h, true))
				}
				if a, b := stat(t, d, holder), stat(t, d, h.Path); a.Ino != b.Ino || b.Nlink != 2 {
					t.Errorf("%s is no link", h.Path)
				}
			}
			h = &tarstream.Header{Path: "d", Type: tarstream.Dir, Mode: 0o3750, UID: 5, GID: 6, Mtime: old, Xattrs: trusted}
			ok(t, d.FinishDir(h))
			all = append(all, h)
			h = &tarstream.Header{Path: ".", Type: tarstream.Dir, Mode: 0o755, UID: 5, GID: 6, Mtime: old}
			ok(t, d.FinishDir(h))
			all = append(all, h)
			for _, h := range all {
				check(t, d, h)
			}
			names, err := d.ReadDirNames("d")
			ok(t, err)
			if len(names) != 16+1+1+3+3 {
				t.Errorf("directory has %q", names)
			}
		}
		refused(t, "Mkdir over a file", func() error { _, err := d.Mkdir("d/x"); return err }())
		refused(t, "file over a file", d.WriteSmall(file("d/x"), nil, false))
		refused(t, "file over a directory", d.WriteSmall(file("d"), nil, true))
		_, err = d.Lstat("d/none/x")
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), `"d/none"`) {
			t.Errorf("Lstat: %v", err)
		}
		_, err = d.OpenRead("d/p")
		refused(t, "OpenRead of a FIFO", err)
	})
}

func TestHolesStayHolesAndAbortLeavesNothing(t *testing.T) {
	eachWay(t, func(t *testing.T, d *Dest, _ string) {
		for _, replace := range []bool{false, true} {
			f, err := d.CreateFile(file("s"), replace)
			ok(t, err)
			_, err = f.WriteAt([]byte("middle"), 8<<20)
			ok(t, err)
			ok(t, f.Truncate(32<<20))
			ok(t, f.Finish())
			f.Abort() // does nothing
			if st := stat(t, d, "s"); st.Size != 32<<20 || st.Blocks > 64 {
				t.Errorf("size %d, %d blocks", st.Size, st.Blocks)
			}
			f, err = d.CreateFile(file(map[bool]string{true: "s", false: "new"}[replace]), replace)
			ok(t, err)
			_, err = f.WriteAt([]byte("x"), 0)
			ok(t, err)
			f.Abort()
			if st := stat(t, d, "s"); st.Size != 32<<20 {
				t.Error("an aborted file took its place")
			}
			names, err := d.ReadDirNames(".")
			ok(t, err)
			if len(names) != 1 {
				t.Errorf("left: %q", names)
			}
		}
	})
}

func TestInheritedACLsAndGroupsDoNotStay(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		ok(t, os.Mkdir(root+"/d", 0o755))
		ok(t, os.Chown(root+"/d", 0, 4444))
		ok(t, os.Chmod(root+"/d", 0o755|fs.ModeSetgid))
		ok(t, unix.Setxattr(root+"/d", aclDefault, acl(4321), 0))
		for _, replace := range []bool{false, true} {
			for i, mode := range []uint32{0o644, 0o600, 0o777, 0o4750} {
				h := head(fmt.Sprintf("d/f%d", i), tarstream.File, mode)
				ok(t, d.WriteSmall(h, []byte("x"), replace))
				check(t, d, h)
			}
			h := head("d/own", tarstream.File, 0o770)
			h.Xattrs = []tarstream.Xattr{{Name: aclAccess, Value: acl(1)}}
			ok(t, d.WriteSmall(h, nil, replace))
			check(t, d, h)
			h = head("d/p", tarstream.Fifo, 0o622)
			ok(t, d.Special(h, replace))
			check(t, d, h)
			ok(t, d.Symlink(symlink("d/l", "x"), replace))
			check(t, d, symlink("d/l", "x"))
			_, err := d.Mkdir("d/sub")
			ok(t, err)
			h = head("d/sub", tarstream.Dir, 0o755)
			ok(t, d.FinishDir(h))
			check(t, d, h)
		}
		// What is known of a directory changes with its metadata.
		h := head("d", tarstream.Dir, 0o755)
		ok(t, d.FinishDir(h))
		check(t, d, h)
		ok(t, d.WriteSmall(file("d/later"), nil, false))
		check(t, d, file("d/later"))
		h.Path, h.Xattrs, h.Mode, h.GID = ".", []tarstream.Xattr{{Name: aclDefault, Value: acl(3)}}, 0o2755, 4444
		ok(t, d.FinishDir(h))
		ok(t, d.WriteSmall(file("later"), nil, false))
		check(t, d, file("later"))
	})
}

func TestSetMetaMakesExactlyTheHeader(t *testing.T) {
	needRoot(t)
	eachWay(t, func(t *testing.T, d *Dest, root string) {
		ok(t, os.WriteFile(root+"/f", []byte("x"), 0o600))
		ok(t, os.Symlink("text", root+"/l"))
		ok(t, unix.Lsetxattr(root+"/l", "trusted.old", []byte("1"), 0))
		ok(t, unix.Setxattr(root+"/f", "user.old", []byte("1"), 0))
		ok(t, unix.Setxattr(root+"/f", "user.same", []byte("1"), 0))
		ok(t, unix.Setxattr(root+"/f", aclAccess, acl(3), 0))
		for _, mode := range []uint32{0o4755, 0o4755, 0o644} {
			h := head("f", tarstream.File, mode)
			h.UID, h.Xattrs = 17, []tarstream.Xattr{{Name: "security.capability", Value: netBind}, {Name: "user.same", Value: []byte("1")}}
			have := stat(t, d, "f")
			ok(t, d.SetMeta(h, &have))
			check(t, d, h)
		}
		before := stat(t, d, "f")
		h := head("f", tarstream.File, 0o644)
		h.UID, h.Xattrs = 17, []tarstream.Xattr{{Name: "security.capability", Value: netBind}, {Name: "user.same", Value: []byte("1")}}
		ok(t, d.SetMeta(h, nil))
		if after := stat(t, d, "f"); after.Ctime != before.Ctime {
			t.Error("SetMeta changed what did not differ")
		}
		l := symlink("l", "text")
		l.GID = 3
		ok(t, d.SetMeta(l, nil))
		check(t, d, l)
		other := stat(t, d, "l")
		refused(t, "another entry", d.SetMeta(h, &other))
		refused(t, "another type", d.SetMeta(head("l", tarstream.File, 0o644), nil))

		h.Xattrs = []tarstream.Xattr{{Name: "security.selinux", Value: []byte("a")}, {Name: "system.nfs4_acl", Value: []byte("a")}, {Name: "user.z", Value: []byte("1")}}
		h.Mode = 0o600
		var x *XattrError
		if err := d.SetMeta(h, nil); !errors.As(err, &x) || x.Name != "security.selinux" || !strings.Contains(err.Error(), "nfs4_acl") {
			t.Errorf("foreign attributes: %v", err)
		}
		h.Xattrs = h.Xattrs[2:]
		check(t, d, h)
	})
}

func TestNoOwnerLeavesOwnersAndTheirPowerOut(t *testing.T) {
	needRoot(t)
	d := mustOpen(t, t.TempDir(), DestOptions{NoOwner: true}, false)
	h := &tarstream.Header{Path: "f", Type: tarstream.File, Mode: 0o6755, UID: 5, GID: 6, Xattrs: []tarstream.Xattr{{Name: "security.capability", Value: netBind}, {Name: "user.a", Value: []byte("1")}}}
	ok(t, d.WriteSmall(h, nil, false))
	want := *h
	want.Mode, want.UID, want.GID, want.Xattrs = 0o755, 0, 0, h.Xattrs[1:]
	check(t, d, &want)
	ok(t, unix.Setxattr(d.root.proc()+"/f", capability, netBind, 0))
	ok(t, d.SetMeta(h, nil))
	check(t, d, &want)
}
