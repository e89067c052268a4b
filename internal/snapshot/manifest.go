package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/disko/backupd/internal/snapshot/index"
	"github.com/disko/backupd/internal/snapshot/pack"
	"github.com/disko/backupd/internal/snapshot/tree"
)

// FormatVersion is the version of the format this code writes, and the newest
// it reads. docs/format.md describes it.
const FormatVersion = 1

// maxManifest bounds a decoded manifest: sizes of packs are most of it, about
// 10 bytes for 16 MiB.
const maxManifest = 64 << 20

// Manifest is the object whose appearance commits a snapshot. It names all that the snapshot needs.
type Manifest struct {
	Format     int       `json:"format"`
	Repository string    `json:"repository"` // id of the repository it belongs to
	Stack      string    `json:"stack"`
	Sequence   uint64    `json:"sequence"` // one more than the highest the writer saw
	Parent     string    `json:"parent,omitempty"`
	CopyOf     string    `json:"copy_of,omitempty"` // id that it was first given, in another repository
	Run        string    `json:"run"`
	Salt       string    `json:"salt,omitempty"` // random: the id, a hash, tells nothing of the content
	Started    time.Time `json:"started"`
	Finished   time.Time `json:"finished"`
	Origin     string    `json:"origin,omitempty"` // which installation took it; never a host name
	Trigger    string    `json:"trigger"`          // manual, schedule or undo
	Version    string    `json:"version"`          // of backupd
	Tags       []string  `json:"tags,omitempty"`
	Seeded     string    `json:"seeded,omitempty"` // id of the snapshot that the installation was seeded from: a clone's
	About      *About    `json:"about,omitempty"`
	Volumes    []Volume  `json:"volumes"` // in the order of their names

	id string // from its checksum
}

// About says what a stack was when a snapshot was taken.
type About struct {
	Project  string    `json:"project,omitempty"` // Compose's name for it
	Services []Service `json:"services,omitempty"`
}

// Service is a service of a stack: what it ran.
type Service struct {
	Name    string `json:"name"`
	Image   string `json:"image,omitempty"`    // as it was asked for
	ImageID string `json:"image_id,omitempty"` // digest of what ran
}

// Leads says whether the snapshot stands for its stack: it does unless an
// installation that was itself seeded took it, and neither schedule nor name say that it is meant to.
func (m *Manifest) Leads() bool {
	return m.Seeded == "" || m.Trigger == "schedule" || len(m.Tags) > 0
}

// Volume is one volume's part of a snapshot.
type Volume struct {
	Name string `json:"name"`
	// Driver, Options and Labels are what the engine said of the volume.
	Driver  string            `json:"driver,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Dump: no volume, but what a program wrote, as a file.
	Dump     bool           `json:"dump,omitempty"`
	Identity *tree.Identity `json:"identity,omitempty"` // of the source; nil where its stats mean nothing

	// The sections of the stream: their entries, and the frames of the first.
	Files    index.Tree `json:"files"`
	Frames   index.Tree `json:"frames"`
	Nodes    index.Tree `json:"nodes"`
	Absent   index.Tree `json:"absent"`
	NextSlot uint64     `json:"next_slot"` // lowest slot no snapshot of this line used yet

	Packs []PackRange `json:"packs"` // that hold the stream's frames
	Index []PackRange `json:"index"` // that hold the index's pages
	// Rewrite is advice to the next run: what is no longer worth keeping.
	Rewrite Rewrite `json:"rewrite"`

	Counts   Counts    `json:"counts"`
	Excludes []string  `json:"excludes,omitempty"`
	Warnings []Warning `json:"warnings,omitempty"` // at most maxWarnings; Counts.Warnings has the number
}

// PackRange names packs of one run with consecutive numbers, and their sizes in bytes.
type PackRange struct {
	Run   string   `json:"run"`
	First uint32   `json:"first"`
	Sizes []uint32 `json:"sizes"`
}

// Rewrite lists what the next run stores again: groups of which less than half is
// live, and packs of which little is still used.
type Rewrite struct {
	Slots []uint64 `json:"slots,omitempty"`
	Packs []string `json:"packs,omitempty"`
	Index []string `json:"index,omitempty"`
}

// Counts are a volume's numbers.
type Counts struct {
	Files    uint64 `json:"files"`   // regular files, hard links counted once
	Entries  uint64 `json:"entries"` // of all types
	Bytes    uint64 `json:"bytes"`   // sum of the files' sizes
	Warnings uint64 `json:"warnings,omitempty"`
}

// Warning says what of one path is missing or doubtful.
type Warning struct {
	Path string `json:"path"` // escaped as in the index
	What string `json:"what"`
	// Notice: nothing is missing that could be restored, such as a socket.
	// It does not count as a warning.
	Notice bool `json:"notice,omitempty"`
}

// maxWarnings bounds the list in a manifest.
const maxWarnings = 100

func (w Warning) String() string { return w.Path + ": " + w.What }

// Section returns the tree of a section.
func (v *Volume) Section(s index.Section) *index.Tree {
	switch s {
	case index.Files:
		return &v.Files
	case index.Nodes:
		return &v.Nodes
	}
	return &v.Absent
}

// trailer is a manifest's last line.
type trailer struct {
	SHA256 string `json:"sha256"`
}

// encode returns the manifest's object and the snapshot's id.
func (m *Manifest) encode(enc *pack.Encoder) (data []byte, id string, err error) {
	var buf bytes.Buffer
	je := json.NewEncoder(&buf)
	je.SetEscapeHTML(false) // the roots of the index hold paths as they are in its pages
	if err := je.Encode(m); err != nil {
		return nil, "", fmt.Errorf("encode manifest: %w", err)
	}
	body := bytes.TrimSuffix(buf.Bytes(), []byte{'\n'})
	sum := sha256.Sum256(body)
	raw := fmt.Appendf(body, "\n"+`{"sha256":"%x"}`+"\n", sum)
	if len(raw) > maxManifest {
		return nil, "", fmt.Errorf("manifest of %d bytes is larger than the format allows", len(raw))
	}
	return enc.Encode(nil, raw), manifestID(sum), nil
}

// manifestID is a snapshot's id: the first half of its manifest's checksum.
func manifestID(sum [sha256.Size]byte) string { return hex.EncodeToString(sum[:16]) }

// parseManifest reads what encode wrote. It checks the manifest against
// itself; that it belongs where it was found is readManifest's part.
func parseManifest(data []byte) (*Manifest, string, error) {
	raw, err := pack.DecodeDocument(data, maxManifest)
	if err != nil {
		return nil, "", err
	}
	body, last, ok := bytes.Cut(raw, []byte{'\n'})
	if !ok {
		return nil, "", fmt.Errorf("%w: ends before its checksum", ErrDamaged)
	}
	var t trailer
	if err := strictJSON(last, &t); err != nil {
		return nil, "", fmt.Errorf("%w: its checksum line: %w", ErrDamaged, err)
	}
	sum := sha256.Sum256(body)
	if t.SHA256 != hex.EncodeToString(sum[:]) {
		return nil, "", fmt.Errorf("%w: checksum does not match", ErrDamaged)
	}
	var version struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(body, &version); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if version.Format > FormatVersion {
		return nil, "", &NewerFormatError{What: "snapshot", Format: version.Format}
	}
	m := &Manifest{}
	if err := strictJSON(body, m); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err := m.check(); err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return m, manifestID(sum), nil
}

func (m *Manifest) check() error {
	if m.Format != FormatVersion {
		return fmt.Errorf("format %d", m.Format)
	}
	if err := CheckName("stack", m.Stack); err != nil {
		return err
	}
	if !pack.ValidRun(m.Run) {
		return fmt.Errorf("run %q", m.Run)
	}
	if m.Seeded != "" && !validID(m.Seeded) {
		return fmt.Errorf("seeded from %q", m.Seeded)
	}
	for i := range m.Volumes {
		v := &m.Volumes[i]
		if err := CheckName("volume", v.Name); err != nil {
			return err
		}
		if i > 0 && v.Name <= m.Volumes[i-1].Name {
			return errors.New("volumes out of order")
		}
		for _, ranges := range [][]PackRange{v.Packs, v.Index} {
			for _, r := range ranges {
				if !pack.ValidRun(r.Run) || uint64(r.First)+uint64(len(r.Sizes)) > 1<<32 {
					return fmt.Errorf("packs of run %q", r.Run)
				}
				for _, size := range r.Sizes {
					if size > pack.MaxSize {
						return fmt.Errorf("pack of %d bytes in run %s", size, r.Run)
					}
				}
			}
		}
	}
	return nil
}

// Volume returns the volume of that name, or nil.
func (m *Manifest) Volume(name string) *Volume {
	for i := range m.Volumes {
		if m.Volumes[i].Name == name {
			return &m.Volumes[i]
		}
	}
	return nil
}

// strictJSON decodes one value and refuses unknown members and whatever follows.
func strictJSON(b []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("trailing data")
	}
	return nil
}
