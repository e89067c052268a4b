package s3

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// fits returns the length of what the server sends for a range, if that is
// what was asked for. Servers, and caches between, ignore ranges or change them.
func fits(off, n int64, status int, contentRange string, length int64) (int64, error) {
	if status != http.StatusPartialContent {
		if off == 0 && (n < 0 || length == n) {
			return length, nil // the range was the whole object
		}
		return 0, fmt.Errorf("the server ignored the range and sent the whole object (HTTP %d)", status)
	}
	first, last, total, err := parseContentRange(contentRange)
	if err != nil {
		return 0, err
	}
	got := last - first + 1
	switch {
	case first != off, length >= 0 && length != got, n >= 0 && got > n, total >= 0 && last >= total:
		return 0, fmt.Errorf("the server sent another range than was asked for: %d bytes, %q", length, contentRange)
	case n >= 0 && got < n && total == last+1:
		return 0, fmt.Errorf("%w: has %d bytes, wanted %d from %d", store.ErrShort, total, n, off)
	case n >= 0 && got < n, n < 0 && total != last+1:
		return 0, fmt.Errorf("the server sent a part of the range: %q", contentRange)
	}
	return got, nil
}

// parseContentRange reads "bytes 0-99/1000"; total is -1 where it is "*".
func parseContentRange(s string) (first, last, total int64, err error) {
	bad := fmt.Errorf("the server's answer has no range, or an unreadable one: %q", line(s, 100))
	span, size, ok := strings.Cut(strings.TrimPrefix(s, "bytes "), "/")
	a, b, dash := strings.Cut(span, "-")
	if !ok || !dash || !strings.HasPrefix(s, "bytes ") {
		return 0, 0, 0, bad
	}
	number := func(s string) int64 {
		v, perr := strconv.ParseInt(s, 10, 64)
		if perr != nil || v < 0 || s[0] == '+' {
			err = bad
		}
		return v
	}
	first, last, total = number(a), number(b), -1
	if size != "*" {
		total = number(size)
	}
	if err == nil && (last < first || last == math.MaxInt64) {
		err = bad
	}
	return first, last, total, err
}
