package testservers

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

const (
	portmapper              = 111
	portmapperProgramNumber = 100000
)

// startRPCBind starts one where nothing answers at port 111, and ends it with
// the test: ganesha does not start without. (Debian's rpcbind crashes when it
// is told to listen on 127.0.0.1 only, and takes changes from there only.)
func startRPCBind(t testing.TB) error {
	t.Helper()
	if nfsAnswers("127.0.0.1", portmapper, portmapperProgramNumber, 2) == nil {
		return nil
	}
	program, err := nfsProgram("rpcbind")
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "-f")
	ended, err := spawn(cmd)
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // gone already, if another was there first
		<-ended
	})
	deadline := time.Now().Add(startTimeout)
	for {
		err := nfsAnswers("127.0.0.1", portmapper, portmapperProgramNumber, 2)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			// Another process may have started one at the same moment.
			if nfsAnswers("127.0.0.1", portmapper, portmapperProgramNumber, 2) == nil {
				return nil
			}
			return errors.New("rpcbind ended before it answered")
		case <-time.After(askEvery):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("rpcbind does not answer in %v: %w", startTimeout, err)
		}
	}
}

// nfsAnswers calls an RPC program's procedure 0, which does nothing.
func nfsAnswers(host string, port int, program, version uint32) error {
	conn, err := net.DialTimeout("tcp", net.JoinHostPort(host, strconv.Itoa(port)), 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	const xid = 1
	var call []byte
	// The record's mark, the call with RPC version 2, two empty authentications.
	for _, v := range []uint32{40 | 1<<31, xid, 0, 2, program, version, 0, 0, 0, 0, 0} {
		call = binary.BigEndian.AppendUint32(call, v)
	}
	if _, err := conn.Write(call); err != nil {
		return err
	}
	answer := make([]byte, 28)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if binary.BigEndian.Uint32(answer[4:]) != xid || binary.BigEndian.Uint32(answer[24:]) != 0 {
		return fmt.Errorf("program %d version %d does not answer at port %d", program, version, port)
	}
	return nil
}
