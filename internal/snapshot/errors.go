package snapshot

import (
	"errors"
	"fmt"

	"github.com/disko/backupd/internal/snapshot/pack"
)

// Questions that callers ask with errors.Is.
var (
	// ErrDamaged: something on the target is not what was written.
	ErrDamaged = pack.ErrCorrupt
	// ErrNoRepository: the target holds no repository.
	ErrNoRepository = errors.New("no repository")
	// ErrForeign: the target is a directory of something else.
	ErrForeign = errors.New("not a backupd repository")
	// ErrNoSnapshot: no snapshot of that name.
	ErrNoSnapshot = errors.New("no such snapshot")
	// ErrSetBack: the target has less than it once had.
	ErrSetBack = errors.New("older than what was there before")
	// ErrNoVolume: the snapshot does not have that volume.
	ErrNoVolume = errors.New("no such volume")
	// ErrNotEmpty: the volume to restore to holds data.
	ErrNotEmpty = errors.New("not empty")
	// ErrAmbiguous: several snapshots fit the name.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrCondemned: a prune is removing something that is needed.
	ErrCondemned = errors.New("a prune removes what is needed")
	// ErrUsage: the caller asked for something that makes no sense.
	ErrUsage = errors.New("wrong usage")
)

// NewerFormatError refuses a repository or snapshot of a later version.
type NewerFormatError struct {
	What   string
	Format int
}

func (e *NewerFormatError) Error() string {
	return fmt.Sprintf("%s has format %d, this backupd reads up to %d: use a newer backupd", e.What, e.Format, FormatVersion)
}

// CheckName refuses names of stacks and volumes that cannot be part of an
// object's key: they are Compose's and Docker's rules, and 128 bytes at most.
func CheckName(what, name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-' && name[0] != '_'
	for i := range len(name) {
		c := name[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%w: %s name %q: use letters, digits, '.', '_' and '-', beginning with a letter or digit, 128 at most", ErrUsage, what, name)
	}
	return nil
}
