package index

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
)

// Root is the path of a volume's root directory.
const Root = "."

// ComparePaths orders paths component by component, bytes within a component:
// the order of a walk that sorts each directory's names. The root comes first.
func ComparePaths(a, b string) int {
	if a == Root {
		a = ""
	}
	if b == Root {
		b = ""
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] == b[i] {
			continue
		}
		// A slash ends a component, and the shorter component comes first;
		// names hold no NUL, so nothing sorts before it.
		x, y := a[i], b[i]
		if x == '/' {
			x = 0
		}
		if y == '/' {
			y = 0
		}
		if x < y {
			return -1
		}
		return 1
	}
	return len(a) - len(b)
}

// Below says whether path lies below dir (and is not dir itself).
func Below(path, dir string) bool {
	if dir == Root {
		return path != Root
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// Hash is H(path): the first eight bytes of its SHA-256, big-endian. Where
// pages and groups are cut depends on it alone, so that no change of content
// moves a boundary.
func Hash(path string) uint64 {
	sum := sha256.Sum256([]byte(path))
	return binary.BigEndian.Uint64(sum[:])
}

// appendEscaped writes a path in ASCII: every byte outside 0x20..0x7e, and
// '"' and '\', as \0 and three octal digits, the escape of printf's %b; the
// backslash doubled, as it stands in a JSON string.
func appendEscaped(dst []byte, path string) []byte {
	for i := range len(path) {
		c := path[i]
		if c >= 0x20 && c <= 0x7e && c != '"' && c != '\\' {
			dst = append(dst, c)
			continue
		}
		dst = append(dst, '\\', '\\', '0', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
	}
	return dst
}

// Escape returns a path in the form the index keeps it in, without JSON's doubling.
func Escape(path string) string {
	return strings.ReplaceAll(string(appendEscaped(nil, path)), `\\`, `\`)
}

// unescape reads the JSON string body that appendEscaped writes, and nothing else.
func unescape(b []byte) (string, error) {
	plain := true
	for _, c := range b {
		if c == '\\' {
			plain = false
		} else if c < 0x20 || c > 0x7e || c == '"' {
			return "", fmt.Errorf("byte %#x in an escaped path", c)
		}
	}
	if plain {
		return string(b), nil
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		if len(b)-i < 6 || b[i+1] != '\\' || b[i+2] != '0' || !octal(b[i+3:i+6]) || b[i+3] > '3' {
			return "", fmt.Errorf("bad escape in path %q", b)
		}
		c := (b[i+3]-'0')<<6 | (b[i+4]-'0')<<3 | (b[i+5] - '0')
		if c >= 0x20 && c <= 0x7e && c != '"' && c != '\\' {
			return "", fmt.Errorf("needless escape in path %q", b)
		}
		out = append(out, c)
		i += 5
	}
	return string(out), nil
}

func octal(b []byte) bool {
	for _, c := range b {
		if c < '0' || c > '7' {
			return false
		}
	}
	return true
}
