package tarstream

import "encoding/binary"

// block is what a ustar header holds.
type block struct {
	name, suffix string // stand together
	link         string
	mode         uint32
	uid, gid     uint32
	size, mtime  int64
	flag         byte
	major, minor uint32
}

// paxBlock is the header of n bytes of records.
func paxBlock(n int) *block {
	return &block{name: paxName, mode: 0o644, size: int64(n), flag: 'x'}
}

// fill writes the block to the start of buf, which is zero.
func (b *block) fill(buf []byte) {
	buf = buf[:blockSize]
	n := copy(buf[0:nameSize], b.name)
	copy(buf[n:nameSize], b.suffix)
	octal(buf[100:108], uint64(b.mode))
	octal(buf[108:116], uint64(b.uid))
	octal(buf[116:124], uint64(b.gid))
	octal(buf[124:136], uint64(b.size))
	octal(buf[136:148], uint64(b.mtime))
	buf[156] = b.flag
	copy(buf[157:257], b.link)
	copy(buf[257:265], "ustar\x0000")
	octal(buf[329:337], uint64(b.major))
	octal(buf[337:345], uint64(b.minor))
	copy(buf[148:156], "        ")
	octal(buf[148:155], checksum(buf))
}

// checksum adds up the bytes of a block, eight at a time: a byte at a time it
// takes longer than all else. A lane of 16 bits holds 128 bytes of 255.
func checksum(buf []byte) uint64 {
	const lanes = 0x00ff00ff00ff00ff
	var sum uint64
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(buf[i:])
		sum += w&lanes + w>>8&lanes
	}
	return sum&0xffff + sum>>16&0xffff + sum>>32&0xffff + sum>>48
}

// octal writes a field: digits that fill it but for a NUL at its end.
func octal(field []byte, n uint64) {
	last := len(field) - 1
	field[last] = 0
	for i := last - 1; i >= 0; i-- {
		field[i] = byte('0' + n&7)
		n >>= 3
	}
}
