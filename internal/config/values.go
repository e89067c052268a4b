package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/disko/backupd/internal/bytesize"
	"github.com/disko/backupd/internal/schedule"
)

// split makes the values of a text that came from the environment, a label or
// a flag that is not repeated.
func (s Setting) split(value string) []string {
	var out []string
	switch s.kind {
	case list, enums:
		for _, v := range strings.Split(value, ",") {
			out = append(out, strings.TrimSpace(v))
		}
	case words:
		out = strings.Fields(value)
	default:
		if s.secret {
			return []string{value} // spaces may count
		}
		out = []string{strings.TrimSpace(value)}
	}
	return out
}

// check says what is wrong with one value.
func (s Setting) check(value string, loc *time.Location) (err error) {
	if value == "" && s.kind != cronExpr {
		return errors.New("is empty; give a value, or leave the setting out")
	}
	switch s.kind {
	case enum, enums:
		if !slices.Contains(s.values, value) {
			err = fmt.Errorf("%q is none of %s%s", value, strings.Join(s.values, ", "), suggest(value, s.values))
		}
	case duration:
		_, err = parseDuration(value)
	case flagDuration:
		if _, perr := time.ParseDuration(value); perr != nil {
			err = fmt.Errorf("%q is no duration, as in 90s or 2h30m", value)
		}
	case size:
		_, err = bytesize.Parse(value)
	case number:
		_, err = parseNumber(value)
	case share:
		_, err = parseShare(value)
	case cronExpr:
		_, err = schedule.Parse(value, zoneName(loc))
	case zone:
		_, err = schedule.Zone(value)
	case address:
		err = checkAddress(value)
	case toggle:
		if value != "true" && value != "false" {
			err = fmt.Errorf("%q is neither true nor false", value)
		}
	case integer:
		if _, perr := strconv.ParseInt(value, 10, 64); perr != nil {
			err = fmt.Errorf("%q is no whole number, as in 7", value)
		}
	}
	return err
}

func zoneName(loc *time.Location) string {
	if loc == nil {
		return ""
	}
	return loc.String()
}

// parseDuration reads Go's durations, and days.
func parseDuration(value string) (time.Duration, error) {
	wrong := fmt.Errorf("%q is no duration, as in 90s, 2h30m or 7d", value)
	var total time.Duration
	rest := value
	if days, after, ok := strings.Cut(value, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return 0, wrong
		}
		total, rest = time.Duration(n)*24*time.Hour, after
		if rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || d > math.MaxInt64-total {
		return 0, wrong
	}
	return total + d, nil
}

func parseNumber(value string) (float64, error) {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || !(n > 0) || n > 1e6 {
		return 0, fmt.Errorf("%q is no positive number, as in 1.5", value)
	}
	return n, nil
}

// parseShare reads a percentage as a fraction of one.
func parseShare(value string) (float64, error) {
	digits, ok := strings.CutSuffix(value, "%")
	n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	if err != nil || !ok || !(n >= 0 && n <= 100) {
		return 0, fmt.Errorf("%q is no share from 0%% to 100%%, as in 50%%", value)
	}
	return n / 100, nil
}

func checkAddress(value string) error {
	if value == "off" {
		return nil
	}
	_, port, err := net.SplitHostPort(value)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return fmt.Errorf("%q is no address, as in 127.0.0.1:9180 or :9180, and not off", value)
	}
	return nil
}

// suggest names the one of the known words that a wrong one is closest to.
func suggest(word string, known []string) string {
	best, distance := "", max(2, len(word)/3)+1
	for _, k := range known {
		if d := editDistance(word, k, distance); d < distance {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance counts the letters to add, remove, change or swap to get from a
// to b; limit is good enough for more.
func editDistance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit {
		return limit
	}
	rows := [3][]int{}
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
	}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row := rows[0], rows[1], rows[2]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		rows[0], rows[1], rows[2] = last, row, before
	}
	return rows[1][len(b)]
}
