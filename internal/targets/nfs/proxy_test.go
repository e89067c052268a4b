package nfs

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/disko/backupd/internal/testservers"
)

// proxy stands between the client and a server's NFS service, and bends what
// goes through. Its hooks are set before it is used.
type proxy struct {
	// answer answers a call in the server's place, with status and result;
	// nil lets it through.
	answer func(proc uint32) []byte
	// change bends what the server answered.
	change func(proc uint32, result []byte) []byte
	// twice has the server make a call two times, the first answer being lost.
	twice func(proc uint32) bool
	// cut ends the connection in place of passing a call on.
	cut func(proc uint32) bool

	port int

	mu    sync.Mutex
	calls map[uint32]int // by procedure
}

func (p *proxy) count(proc uint32) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[proc]
}

// through returns options that go through the proxy.
func (p *proxy) through(t testing.TB, s *testservers.NFS, o Options) Options {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.port, p.calls = l.Addr().(*net.TCPAddr).Port, map[uint32]int{}
	upstream := o.address(s.Port)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				client.Close()
				continue
			}
			c := &proxied{proxy: p, client: client, server: server, procs: map[uint32]uint32{}}
			wg.Go(c.calls)
			wg.Go(c.answers)
		}
	})
	o.Port = p.port
	return o
}

// proxied is one connection.
type proxied struct {
	*proxy
	client, server net.Conn

	mu    sync.Mutex // of writing to the client, too
	procs map[uint32]uint32
}

const duplicate = 1 << 31 // marks the xids of calls made twice

func (c *proxied) close() {
	c.client.Close()
	c.server.Close()
}

func (c *proxied) calls() {
	defer c.close()
	for {
		call, err := readRecord(c.client)
		if err != nil {
			return
		}
		xid, proc := binary.BigEndian.Uint32(call), binary.BigEndian.Uint32(call[20:])
		c.proxy.mu.Lock()
		c.proxy.calls[proc]++
		c.proxy.mu.Unlock()
		if c.cut != nil && c.cut(proc) {
			return
		}
		if c.answer != nil {
			if result := c.answer(proc); result != nil {
				head := binary.BigEndian.AppendUint32(nil, xid)
				head = append(head, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
				c.mu.Lock()
				err := writeRecord(c.client, append(head, result...))
				c.mu.Unlock()
				if err != nil {
					return
				}
				continue
			}
		}
		c.mu.Lock()
		c.procs[xid] = proc
		c.mu.Unlock()
		if c.twice != nil && c.twice(proc) {
			first := append([]byte(nil), call...)
			binary.BigEndian.PutUint32(first, xid^duplicate)
			c.mu.Lock()
			c.procs[xid^duplicate] = duplicate
			c.mu.Unlock()
			if writeRecord(c.server, first) != nil {
				return
			}
		}
		if writeRecord(c.server, call) != nil {
			return
		}
	}
}

func (c *proxied) answers() {
	defer c.close()
	for {
		answer, err := readRecord(c.server)
		if err != nil {
			return
		}
		xid := binary.BigEndian.Uint32(answer)
		c.mu.Lock()
		proc := c.procs[xid]
		delete(c.procs, xid)
		c.mu.Unlock()
		if proc == duplicate {
			continue
		}
		const head = 24 // an accepted answer with an empty verifier
		if c.change != nil {
			answer = append(answer[:head:head], c.change(proc, answer[head:])...)
		}
		c.mu.Lock()
		err = writeRecord(c.client, answer)
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func readRecord(r io.Reader) ([]byte, error) {
	var all []byte
	for {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		m := binary.BigEndian.Uint32(mark[:])
		part := make([]byte, m&^lastFragment)
		if _, err := io.ReadFull(r, part); err != nil {
			return nil, err
		}
		if all = append(all, part...); m&lastFragment != 0 {
			return all, nil
		}
	}
}

// writeRecord sends larger records in two fragments, which some servers do.
func writeRecord(w io.Writer, b []byte) error {
	var out []byte
	if half := len(b) / 2; half > 500 {
		out = binary.BigEndian.AppendUint32(out, uint32(half))
		out = append(out, b[:half]...)
		b = b[half:]
	}
	out = binary.BigEndian.AppendUint32(out, uint32(len(b))|lastFragment)
	_, err := w.Write(append(out, b...))
	return err
}

// refusal is an answer of a status, with neither attributes nor a result.
func refusal(s status) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(s)), make([]byte, 12)...)
}
