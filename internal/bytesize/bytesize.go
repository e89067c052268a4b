// Package bytesize writes numbers of bytes for people, and reads what they
// write. Units are powers of 1024, as Docker has them.
package bytesize

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Text is a number of bytes with one decimal, as in "1.5 GiB"; "17 B" below one KiB.
func Text[T int | int64 | uint64](n T) string {
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	for f >= 1024 && len(units) > 1 {
		f, units = f/1024, units[1:]
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}

// Parse reads a whole number above 0 and a unit: 512m, 2 GiB, 1t; bytes without one.
func Parse(text string) (int64, error) {
	wrong := fmt.Errorf("%q is no size, as in 512m or 2GiB", text)
	digits := strings.TrimRight(text, "bBiIkKmMgGtT ")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n <= 0 {
		return 0, wrong
	}
	shift := 0
	switch strings.ToLower(strings.TrimSpace(text[len(digits):])) {
	case "", "b":
	case "k", "kb", "kib":
		shift = 10
	case "m", "mb", "mib":
		shift = 20
	case "g", "gb", "gib":
		shift = 30
	case "t", "tb", "tib":
		shift = 40
	default:
		return 0, wrong
	}
	if n > math.MaxInt64>>shift {
		return 0, wrong
	}
	return n << shift, nil
}
