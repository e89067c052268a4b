package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong, and where.
type Problem struct {
	Place string // backupd.yaml:12, BACKUPD_SCHEDULE, label backupd.schedule, --schedule
	Key   string // the setting, or empty
	Text  string // what is wrong and what to do
	line  int
}

func (p Problem) String() string {
	if p.Key == "" {
		return p.Place + ": " + p.Text
	}
	return p.Place + ": " + p.Key + ": " + p.Text
}

// Problems is the error of Load: all that is wrong, at once.
type Problems []Problem

func (p Problems) Error() string {
	if len(p) == 1 {
		return "configuration: " + p[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "configuration: %d errors:", len(p))
	for _, one := range p {
		b.WriteString("\n  " + one.String())
	}
	return b.String()
}

// sorted puts the file's problems in the order of its lines.
func (p Problems) sorted() Problems {
	slices.SortStableFunc(p, func(a, b Problem) int { return a.line - b.line })
	return p
}
