package nfs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"

	"github.com/disko/backupd/internal/store"
)

// ONC RPC version 2 over TCP: RFC 5531, its record marks in section 11.
const (
	rpcVersion = 2
	rpcCall    = 0
	rpcReply   = 1

	authUnix     = 1
	machineName  = "backupd"
	maxGroups    = 16 // RFC 5531, appendix A
	maxAuthBytes = 400

	lastFragment = 1 << 31
	maxFragments = 1 << 10
	// maxRecord is more than the largest answer that is ever asked for.
	maxRecord = 2*maxPiece + 1<<16
)

// program is a service of a server.
type program struct {
	name            string
	number, version uint32
}

// caller is whom the server takes us for.
type caller struct {
	uid, gid uint32
	groups   []uint32
}

func (c caller) credential() []byte {
	var e encoder
	e.u32(0) // stamp
	e.string(machineName)
	e.u32(c.uid)
	e.u32(c.gid)
	e.u32(uint32(len(c.groups)))
	for _, g := range c.groups {
		e.u32(g)
	}
	return e.b
}

// client makes calls on one connection. It is used by one goroutine at a time:
// who sends also receives. Sending cannot block on answers that are not yet
// read, for of a call and its answer one is always small.
type client struct {
	*wire
	r          *bufio.Reader
	program    program
	credential []byte
	xid        uint32
	out        encoder
	in         []byte
}

func newClient(w *wire, p program, c caller) *client {
	// A server may remember answers by port and xid, and the port may have been
	// another connection's.
	return &client{wire: w, r: bufio.NewReaderSize(w, 64<<10), program: p, credential: c.credential(), xid: rand.Uint32()}
}

// call makes one call and returns its result, valid until the next one.
func (c *client) call(proc uint32, args func(*encoder)) (*decoder, error) {
	xid, err := c.send(proc, args)
	if err != nil {
		return nil, err
	}
	for {
		got, d, err := c.receive()
		if err != nil {
			return nil, err
		}
		if got == xid {
			return c.accepted(d)
		}
		// The answer to a call that nobody waits for any more.
	}
}

func (c *client) send(proc uint32, args func(*encoder)) (xid uint32, err error) {
	c.xid++
	e := &c.out
	e.b = append(e.b[:0], 0, 0, 0, 0)
	e.u32(c.xid)
	e.u32(rpcCall)
	e.u32(rpcVersion)
	e.u32(c.program.number)
	e.u32(c.program.version)
	e.u32(proc)
	e.u32(authUnix)
	e.opaque(c.credential)
	e.u32(0) // no verifier
	e.u32(0)
	if args != nil {
		args(e)
	}
	binary.BigEndian.PutUint32(e.b, uint32(len(e.b)-4)|lastFragment)
	_, err = c.Write(e.b)
	return c.xid, err
}

// receive reads one answer; accepted tells what it says.
func (c *client) receive() (xid uint32, d *decoder, err error) {
	if err := c.record(); err != nil {
		return 0, nil, c.note(err)
	}
	d = &decoder{b: c.in}
	xid = d.u32()
	if kind := d.u32(); d.err == nil && kind != rpcReply {
		d.fail("it is no answer")
	}
	if d.err != nil {
		return 0, nil, c.note(d.err) // the stream cannot be trusted any more
	}
	return xid, d, nil
}

func (c *client) record() error {
	c.in = c.in[:0]
	for range maxFragments {
		var mark [4]byte
		if _, err := io.ReadFull(c.r, mark[:]); err != nil {
			return err
		}
		m := binary.BigEndian.Uint32(mark[:])
		n, old := int(m&^lastFragment), len(c.in)
		if n > maxRecord-old {
			return fmt.Errorf("%w: it has more than %d bytes", errGarbled, maxRecord)
		}
		if cap(c.in) < old+n {
			c.in = append(make([]byte, 0, old+n), c.in...)
		}
		c.in = c.in[:old+n]
		if _, err := io.ReadFull(c.r, c.in[old:]); err != nil {
			return err
		}
		if m&lastFragment != 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: it has more than %d fragments", errGarbled, maxFragments)
}

// accepted leads to a call's result, or says why there is none.
func (c *client) accepted(d *decoder) (*decoder, error) {
	p := c.program
	if d.u32() != 0 { // MSG_DENIED
		if d.u32() == 1 && d.err == nil { // AUTH_ERROR
			return nil, fmt.Errorf("%w: the %s service does not take plain user ids (AUTH_UNIX, reason %d); it may want Kerberos, which backupd does not speak: export with sec=sys", store.ErrAccess, p.name, d.u32())
		}
		return nil, fmt.Errorf("%w: the server speaks another version of RPC", store.ErrNoTarget)
	}
	d.u32() // the verifier's flavor
	d.opaque(maxAuthBytes)
	switch state := d.u32(); {
	case d.err != nil:
		return nil, d.err
	case state == 0:
		return d, nil
	case state == 1: // PROG_UNAVAIL
		return nil, fmt.Errorf("no %s service answers at %s; check the port", p.name, c.RemoteAddr())
	case state == 2: // PROG_MISMATCH
		low, high := d.u32(), d.u32()
		return nil, fmt.Errorf("%w: the %s service at %s has versions %d to %d, and backupd speaks %d only; enable it on the server, or mount the directory and name the mount point", store.ErrNoTarget, p.name, c.RemoteAddr(), low, high, p.version)
	default: // PROC_UNAVAIL, GARBAGE_ARGS, SYSTEM_ERR
		return nil, fmt.Errorf("the %s service at %s refused a call (RPC state %d)", p.name, c.RemoteAddr(), state)
	}
}

// piece is n bytes from offset off.
type piece struct {
	off uint64
	n   int
}

// pieces goes through total bytes with one call for each piece and inFlight
// calls at a time. answer says how much of its piece was dealt with; the rest
// is asked for again.
func (c *client) pieces(proc uint32, total uint64, size int, ask func(*encoder, piece), answer func(piece, *decoder) (int, error)) error {
	flying := make(map[uint32]piece, inFlight)
	var next uint64
	var again []piece
	for next < total || len(again) > 0 || len(flying) > 0 {
		for len(flying) < inFlight && (next < total || len(again) > 0) {
			var p piece
			if len(again) > 0 {
				p, again = again[0], again[1:]
			} else {
				p = piece{next, int(min(total-next, uint64(size)))}
				next += uint64(p.n)
			}
			xid, err := c.send(proc, func(e *encoder) { ask(e, p) })
			if err != nil {
				return err
			}
			flying[xid] = p
		}
		xid, d, err := c.receive()
		if err != nil {
			return err
		}
		p, ok := flying[xid]
		if !ok {
			continue
		}
		delete(flying, xid)
		if d, err = c.accepted(d); err != nil {
			return err
		}
		n, err := answer(p, d)
		if err != nil {
			return err
		}
		if n < p.n {
			again = append(again, piece{p.off + uint64(n), p.n - n})
		}
	}
	return nil
}
