package main

import (
	"testing"
)

func TestABarShowsWhatIsDoneAndIsNeverFull(t *testing.T) {
	for _, c := range []struct {
		done, whole int64
		want        string
	}{
		{0, 0, "[----------------------------]"},
		{5, 0, "[----------------------------]"},
		{0, 100, "[----------------------------]"},
		{1 << 50, 1 << 51, "[=============>--------------]"},
		{100, 100, "[==========================>-]"},
		{300, 100, "[==========================>-]"}, // the whole is an estimate
	} {
		if got := bar(c.done, c.whole); got != c.want {
			t.Errorf("%d of %d: %s, want %s", c.done, c.whole, got, c.want)
		}
	}
}
