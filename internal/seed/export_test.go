package seed

import "context"

// ForgetDone makes the ledger what it is when a seed is killed after its last
// restore and before its note.
func ForgetDone(dir, stack, volume string) error {
	l, err := OpenLedger(context.Background(), dir, nil)
	if err != nil {
		return err
	}
	defer l.Close()
	r := l.book.stack(stack).Volumes[volume]
	r.Verdict = Pending
	return l.save()
}
