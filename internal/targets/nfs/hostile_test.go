package nfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"runtime"
	"testing"
	"time"
)

// canned is a connection on which a server says what it was told to say,
// whatever it is asked.
type canned struct {
	net.Conn
	io.Reader
}

func (c canned) Read(b []byte) (int, error)       { return c.Reader.Read(b) }
func (c canned) Write(b []byte) (int, error)      { return len(b), nil }
func (c canned) Close() error                     { return nil }
func (c canned) SetReadDeadline(time.Time) error  { return nil }
func (c canned) SetWriteDeadline(time.Time) error { return nil }
func (c canned) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c canned) LocalAddr() net.Addr              { return &net.TCPAddr{} }

// cannedSession answers the first calls with the same result.
func cannedSession(result []byte) *session {
	var stream []byte
	for xid := range uint32(4) {
		record := binary.BigEndian.AppendUint32(nil, xid+1)
		record = append(record, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		record = append(record, result...)
		stream = binary.BigEndian.AppendUint32(stream, uint32(len(record))|lastFragment)
		stream = append(stream, record...)
	}
	return cannedStream(stream)
}

func cannedStream(stream []byte) *session {
	c := newClient(&wire{Conn: canned{Reader: bytes.NewReader(stream)}, stall: time.Second}, nfsProgram, caller{})
	c.xid = 0
	return &session{client: c, export: &export{dir: "dir", rtmax: 4096, wtmax: 4096, dirmax: 8192}, now: time.Now}
}

func everyCall(s func() *session) map[string]func() error {
	return map[string]func() error{
		"lookup":  func() error { _, err := s().lookup("dir", "name"); return err },
		"create":  func() error { _, err := s().create("dir", "name", fileMode); return err },
		"fsinfo":  func() error { return s().fsinfo() },
		"readdir": func() error { _, err := s().readdir("dir"); return err },
		"read": func() error {
			data, err := s().read(node{attributes: attributes{size: 10000}}, 0, -1)
			if err == nil && len(data) != 10000 {
				return errors.New("a short read")
			}
			return err
		},
		"write":   func() error { return s().write("file", make([]byte, 10000)) },
		"mnt":     func() error { _, err := mnt(s().client, "/export"); return err },
		"exports": func() error { _, err := listExports(s().client); return err },
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add([]byte{})
	f.Add(refusal(statNoEnt))
	f.Add(make([]byte, 200))
	entry := []byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 'x', 0, 0, 0}
	f.Add(append(entry, make([]byte, 24)...))
	f.Add([]byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, result []byte) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for _, call := range everyCall(func() *session { return cannedSession(result) }) {
			_ = call() // any error will do; a panic or an endless loop will not
		}
		for _, call := range everyCall(func() *session { return cannedStream(result) }) {
			_ = call()
		}
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 64<<20+100*uint64(len(result)) {
			t.Errorf("%d bytes of memory for an answer of %d", n, len(result))
		}
	})
}

func TestAnAnswerWithoutEndIsRefused(t *testing.T) {
	for name, stream := range map[string][]byte{
		"a huge record":     {0xff, 0xff, 0xff, 0xff},
		"a huge fragment":   {0x7f, 0xff, 0xff, 0xff},
		"endless fragments": make([]byte, 1<<20),
	} {
		if _, err := cannedStream(stream).lookup("dir", "name"); !errors.Is(err, errGarbled) {
			t.Errorf("%s: %v, want errGarbled", name, err)
		}
	}
}
