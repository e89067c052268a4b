package seed

import (
	"fmt"
	"slices"
	"strings"
)

// Action is what is to be done about a volume.
type Action string

// Actions.
const (
	Leave  Action = "leave"  // it is the project's own
	Seed   Action = "seed"   // it is fresh: restore into it
	Resume Action = "resume" // a seed began here; go on if all that is there is of its snapshot
	Doubt  Action = "doubt"  // left alone, though it may not be what it should
)

// Case is all that a decision depends on.
type Case struct {
	Volumes []*Observation
	Records map[string]Record // the ledger's, by volume
	Window  Window
	// Named are volumes that the user asked for by name. The ledger's verdict does
	// not count for them, only what lies there; and other volumes' data do not.
	Named []string
	// Started are the containers, by volume, that mount it and have ever
	// started, backupd's own excepted. Empty where no engine can be asked.
	Started map[string][]string
	// Command is how the user calls backupd, for advice.
	Command string
}

// Decision is what is to be done about one volume, and why.
type Decision struct {
	*Observation
	Action Action
	Why    string // goes on after the volume's name: "is empty"
	Help   string // the command that would do what was not done; empty if there is none
	// Data says that the volume holds data that backupd did not write.
	Data bool
	// Half says that it holds half a restore, which must not pass for data.
	Half bool
	// Wipe is the engine's copy of an image, to be deleted first.
	Wipe []Entry
	// Check is, to resume, what must be of the snapshot Snapshot. Complete says
	// that it is all of it then: the seed had ended, but for its note in the ledger.
	Check    []Entry
	Snapshot string
	Complete bool
	// Known says that the ledger had this volume already.
	Known *Record
}

// Decide says what to do about each volume of a stack, in their order. It is
// pure: the same case has the same decisions.
func Decide(c Case) []Decision {
	out := make([]Decision, len(c.Volumes))
	for i, o := range c.Volumes {
		out[i] = c.judge(o)
	}
	c.veto(out)
	c.wholeStack(out)
	return out
}

func (c *Case) named(name string) bool { return slices.Contains(c.Named, name) }

func (c *Case) judge(o *Observation) Decision {
	d := Decision{Observation: o}
	rec, found := c.Records[o.Name]
	if found && rec.Identity == o.Identity {
		d.Known = &rec
	}
	switch {
	case o.Mark != nil:
		c.unfinished(&d)
	case d.Known != nil && rec.Verdict == Done && !c.named(o.Name):
		d.Action, d.Why, d.Snapshot = Leave, fmt.Sprintf("was seeded from snapshot %.8s", rec.Snapshot), rec.Snapshot
		if o.Empty() && o.Identity.Born == 0 {
			d.Why += "; it is empty now, and its file system does not tell whether it is still the same"
			d.Help = c.seed(o)
		}
	case d.Known != nil && rec.Verdict == Kept && !c.named(o.Name):
		d.Action, d.Why, d.Data = Leave, rec.Why, !o.Empty()
	case o.Unreadable != "":
		d.Action, d.Data = Doubt, true
		d.Why, d.Help = "cannot be looked through, "+o.Unreadable, c.restore(o)
	case o.Busy:
		d.Action, d.Data = Doubt, true
		d.Why, d.Help = "is in use: another process has a lock on its root", c.restore(o)
	case d.Known != nil && rec.Verdict == Pending:
		c.pending(&d)
	default:
		c.unknown(&d, found)
	}
	return d
}

// unfinished judges a volume that bears the mark of an unfinished restore.
func (c *Case) unfinished(d *Decision) {
	d.Half = true
	m := d.Mark
	ours := m.Fresh && m.Volume == d.Name && m.Snapshot != "" && (d.Known == nil || d.Known.Verdict == Pending)
	switch {
	case d.Unreadable != "" || d.More || d.Mounted != "":
		ours = false
	case d.Known == nil:
		// The ledger is lost, or never had it: the mark and what lies there must do.
		d.Wipe, d.Check = split(d.Entries, func(e *Entry) bool { return notCopied(e, d.Observation, c.Window) == "" })
		if !d.Plain {
			d.Wipe, d.Check = nil, d.Entries
		}
	default:
		d.Wipe, d.Check = split(d.Entries, listed(d.Known.Listing))
		ours = ours && (d.Known.Snapshot == "" || d.Known.Snapshot == m.Snapshot)
	}
	if !ours {
		d.Action, d.Wipe, d.Check = Doubt, nil, nil
		d.Why = "holds half a restore, which was not a seed of backupd's, or not this one's"
		d.Help = c.restore(d.Observation)
		return
	}
	d.Action, d.Snapshot = Resume, m.Snapshot
	d.Why = fmt.Sprintf("was being seeded from snapshot %.8s when that ended", m.Snapshot)
}

// pending judges a volume that was found fresh earlier.
func (c *Case) pending(d *Decision) {
	d.Wipe, d.Check = split(d.Entries, listed(d.Known.Listing))
	switch {
	case d.More || d.Mounted != "" && len(d.Entries) > 0:
		d.Action, d.Data, d.Wipe, d.Check = Doubt, true, nil, nil
		d.Why = "was found fresh earlier, and has been written to since"
		d.Help = c.restore(d.Observation)
	case len(d.Check) == 0:
		d.Action, d.Why = Seed, "is still as it was when it was found fresh"
		if d.Empty() {
			d.Why = "is empty"
		}
	case d.Known.Snapshot != "":
		// There is no mark: either the restore ended, or it never began and this is somebody's.
		d.Action, d.Snapshot, d.Complete = Resume, d.Known.Snapshot, true
		d.Why = fmt.Sprintf("was being seeded from snapshot %.8s when that ended", d.Snapshot)
	default:
		c.foreign(d, d.Check[0].Path)
	}
}

// foreign turns a decision to resume into a doubt: somebody else has written.
func (c *Case) foreign(d *Decision, path string) {
	since := "it was found fresh"
	if d.Action == Resume {
		since = fmt.Sprintf("seeding it from snapshot %.8s began", d.Snapshot)
	}
	d.Action, d.Data, d.Wipe, d.Check = Doubt, true, nil, nil
	d.Why = fmt.Sprintf("has been written to since %s: %q is not backupd's", since, path)
	d.Help = c.restore(d.Observation)
}

// unknown judges a volume by what lies there.
func (c *Case) unknown(d *Decision, found bool) {
	new := ""
	if found && d.Known == nil {
		new = "is another volume than the one that had its name; it "
	}
	switch {
	case d.Mounted != "":
		d.Action, d.Data = Leave, !d.Empty()
		d.Why = fmt.Sprintf("%shas something else mounted in it, at %q", new, d.Mounted)
		d.Help = c.restore(d.Observation)
	case d.Empty():
		d.Action, d.Why = Seed, new+"is empty"
	default:
		why := notFresh(d.Observation, c.Window)
		if why == "" {
			d.Action, d.Wipe = Seed, d.Entries
			d.Why = new + "holds only what the engine copied into it from an image"
			return
		}
		d.Action, d.Data = Leave, true
		d.Why = new + "holds data that backupd did not write: " + why
		d.Help = c.restore(d.Observation)
	}
}

// veto leaves volumes alone that a container has already used, whatever lies there.
func (c *Case) veto(all []Decision) {
	for i := range all {
		d := &all[i]
		who := c.Started[d.Name]
		if len(who) == 0 || d.Action != Seed && d.Action != Resume || c.named(d.Name) && d.Empty() {
			continue
		}
		d.Action, d.Wipe, d.Check = Doubt, nil, nil
		d.Why = fmt.Sprintf("%s, but %s has started with it already", d.Why, strings.Join(who, ", "))
		d.Help = c.restore(d.Observation)
		if d.Empty() {
			d.Help = c.seed(d.Observation)
		}
	}
}

// wholeStack leaves fresh volumes alone where another volume holds data that is
// not ours: old data beside new ones are worse than none.
func (c *Case) wholeStack(all []Decision) {
	i := slices.IndexFunc(all, func(d Decision) bool { return d.Data })
	if i < 0 {
		return
	}
	for j := range all {
		d := &all[j]
		if d.Action != Seed || c.named(d.Name) {
			continue
		}
		d.Action, d.Wipe = Leave, nil
		d.Why = fmt.Sprintf("%s, but volume %s holds data that backupd did not write, and a stack is seeded as a whole", d.Why, all[i].Name)
		d.Help = c.restore(d.Observation)
		if d.Empty() {
			d.Help = c.seed(d.Observation)
		}
	}
}

func (c *Case) seed(o *Observation) string {
	return fmt.Sprintf("%s seed --volume %s=%s", c.Command, o.Name, o.Path)
}

func (c *Case) restore(o *Observation) string {
	return fmt.Sprintf("%s restore --volume %s=%s --force", c.Command, o.Name, o.Path)
}

// notFresh says why what lies in a volume cannot be the engine's copy of an
// image; empty if it is one.
func notFresh(o *Observation, w Window) string {
	switch {
	case !o.Plain:
		return fmt.Sprintf("%s, and only of a plain volume of the engine could that be the copy of an image", some(o.Entries))
	case o.Identity.Born == 0:
		return fmt.Sprintf("%s, and its file system does not tell when that was made", some(o.Entries))
	case !w.known():
		return fmt.Sprintf("%s, and it is not known when this container was made", some(o.Entries))
	case o.More:
		return fmt.Sprintf("more than %d files", len(o.Entries))
	case o.Mtime > w.Started.UnixNano():
		return fmt.Sprintf("its root was changed after this container had started, at %s", clockTime(o.Mtime))
	}
	for i := range o.Entries {
		if why := notCopied(&o.Entries[i], o, w); why != "" {
			return why
		}
	}
	return ""
}

// notCopied says why an entry cannot be of the engine's copy. The copy has the image's times of
// change, which are older than the volume; but the times of directories are those of the copying.
func notCopied(e *Entry, o *Observation, w Window) string {
	switch {
	case !w.known() || e.Born == 0:
		return fmt.Sprintf("%q", e.Path)
	case e.Born < w.Created.UnixNano():
		return fmt.Sprintf("%q was there before this container, since %s", e.Path, clockTime(e.Born))
	case e.Born > w.Started.UnixNano():
		return fmt.Sprintf("%q was made after this container had started, at %s", e.Path, clockTime(e.Born))
	case e.Kind == Dir && e.Mtime > w.Started.UnixNano():
		return fmt.Sprintf("%q was changed after this container had started, at %s", e.Path, clockTime(e.Mtime))
	case e.Kind != Dir && e.Mtime >= o.Identity.Born:
		return fmt.Sprintf("%q was changed in the volume, at %s", e.Path, clockTime(e.Mtime))
	}
	return ""
}

func some(list []Entry) string {
	var names []string
	for _, e := range list {
		if !strings.Contains(e.Path, "/") {
			names = append(names, fmt.Sprintf("%q", e.Path))
		}
	}
	slices.Sort(names)
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

func split(list []Entry, yes func(*Entry) bool) (in, out []Entry) {
	for i := range list {
		if yes(&list[i]) {
			in = append(in, list[i])
		} else {
			out = append(out, list[i])
		}
	}
	return in, out
}

// listed says whether an entry is one of a listing, and was not changed since.
// Of directories it does not matter: what is in them does.
func listed(listing []Entry) func(*Entry) bool {
	by := make(map[string]*Entry, len(listing))
	for i := range listing {
		by[listing[i].Path] = &listing[i]
	}
	return func(e *Entry) bool {
		was := by[e.Path]
		if was == nil || was.Kind != e.Kind || was.Inode != e.Inode || was.Born != e.Born {
			return false
		}
		return e.Kind == Dir || was.Mtime == e.Mtime && was.Size == e.Size
	}
}
