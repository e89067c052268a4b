package snapshot

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"sync"
)

// spill is a file for what was read while the services stood still and memory
// has no room for: writing it down takes a tenth of the time of compressing it.
// It has no name, so that nothing is left of it whatever ends the process, and is
// encrypted with a key that only the process has. It is safe for concurrent use.
type spill struct {
	file  *os.File
	path  string
	block cipher.Block
	mu    sync.Mutex
	next  int64
	most  int64
}

// openSpill opens one in a directory; nil where there is none, or where it would
// be no help: then all is dealt with at once, as it would be on a full disk.
func openSpill(dir string) *spill {
	if dir == "" || os.MkdirAll(dir, 0o700) != nil {
		return nil
	}
	most := spillRoom(dir)
	if most <= 0 {
		return nil
	}
	key := make([]byte, 32)
	rand.Read(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil
	}
	f, err := os.CreateTemp(dir, ".tmp-")
	if err != nil {
		return nil
	}
	_ = os.Remove(f.Name())
	return &spill{file: f, path: f.Name(), block: block, most: most}
}

func (s *spill) close() {
	if s != nil {
		_ = s.file.Close()
		_ = os.Remove(s.path)
	}
}

// reserve returns where n bytes may be written, if there is room.
func (s *spill) reserve(n int) (off int64, ok bool) {
	if s == nil {
		return 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next+int64(n) > s.most {
		return 0, false
	}
	off = s.next
	// No two pieces share a block of the key stream.
	s.next += (int64(n) + aes.BlockSize - 1) / aes.BlockSize * aes.BlockSize
	return off, true
}

// cross encrypts or decrypts in place what lies at an offset.
func (s *spill) cross(raw []byte, off int64) {
	var counter [aes.BlockSize]byte
	binary.BigEndian.PutUint64(counter[8:], uint64(off)/aes.BlockSize)
	cipher.NewCTR(s.block, counter[:]).XORKeyStream(raw, raw)
}

// write says whether it wrote raw where that was reserved. If so, raw is
// scrambled, else as it was.
func (s *spill) write(raw []byte, off int64) bool {
	s.cross(raw, off)
	if _, err := s.file.WriteAt(raw, off); err == nil {
		return true
	}
	s.cross(raw, off)
	return false
}

// read fills raw with what was written at an offset.
func (s *spill) read(raw []byte, off int64) error {
	if _, err := s.file.ReadAt(raw, off); err != nil {
		return fmt.Errorf("read back what changed before the services stood still: %w", err)
	}
	s.cross(raw, off)
	return nil
}
