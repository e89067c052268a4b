// Package sealed encrypts a repository: a store on top of a store, whose
// objects are age files and whose keys name neither stacks nor volumes.
//
// Invariants: what is read was encrypted to the repository's key pair, and a
// manifest was signed for the very key that it lies under; nothing of a stack
// leaves in plain. It does not know what is stored, but for the layout of keys
// in docs/format.md, and it keeps no secrets anywhere.
package sealed

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"filippo.io/age"
)

// Questions that callers ask with errors.Is.
var (
	// ErrNoIdentity: with what there is, this object can be written and not read.
	ErrNoIdentity = errors.New("the agent key can write snapshots and not read them; give the passphrase or an identity")
	// ErrWrongKey: none of the keys opens it.
	ErrWrongKey = errors.New("none of the given keys opens it")
	// ErrForged: it was not written by a holder of the repository's keys, or lies where it was not written.
	ErrForged = errors.New("not written by this repository's keys")
)

// Keys are what an encrypted repository is written and read with. An agent's
// have no identities. They are secrets: nothing prints them.
type Keys struct {
	// Repository is the id that the marker bears.
	Repository string
	// Recipient is the age recipient that all objects are encrypted to.
	Recipient string
	// Identities open objects; the newest first. Empty for an agent.
	Identities []string
	// NameKey is the HMAC key of the names in keys.
	NameKey []byte
	// Signer is the seed of the Ed25519 key that signs manifests.
	Signer []byte
	// Retired are signing keys of earlier generations.
	Retired []Retired
	// Generation counts rotations, from 1.
	Generation int
}

// Retired is a signing key that was rotated out: it counts for the manifests
// that were there then, and for no others, whatever number they bear.
type Retired struct {
	Public    []byte   `json:"public"`
	Snapshots []string `json:"snapshots"` // ids, sorted
}

// bundle is the JSON in keys/<n>; docs/format.md describes it.
type bundle struct {
	Repository string    `json:"repository"`
	Generation int       `json:"generation"`
	Recipient  string    `json:"recipient"`
	Identities []string  `json:"identities,omitempty"`
	NameKey    string    `json:"name_key"`
	Signer     string    `json:"signer"`
	Retired    []Retired `json:"retired,omitempty"`
}

// Generate makes the keys of a new repository. A post-quantum key pair needs
// age 1.3 or newer to be read without backupd.
func Generate(repository string, postQuantum bool) (*Keys, error) {
	k := &Keys{Repository: repository, NameKey: random(32), Signer: random(ed25519.SeedSize), Generation: 1}
	if err := k.newPair(postQuantum); err != nil {
		return nil, err
	}
	return k, nil
}

func (k *Keys) newPair(postQuantum bool) error {
	if postQuantum {
		id, err := age.GenerateHybridIdentity()
		if err != nil {
			return fmt.Errorf("generate the repository's keys: %w", err)
		}
		k.Recipient, k.Identities = id.Recipient().String(), slices.Insert(k.Identities, 0, id.String())
		return nil
	}
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return fmt.Errorf("generate the repository's keys: %w", err)
	}
	k.Recipient, k.Identities = id.Recipient().String(), slices.Insert(k.Identities, 0, id.String())
	return nil
}

// Rotate returns keys with a new pair and a new signing key. What was written
// with the old ones stays readable; snapshots are the ids of all manifests that
// there are, beyond which the old signing key does not count any more.
func (k *Keys) Rotate(snapshots []string) (*Keys, error) {
	if len(k.Identities) == 0 {
		return nil, ErrNoIdentity
	}
	snapshots = slices.Sorted(slices.Values(snapshots))
	next := &Keys{
		Repository: k.Repository, Identities: slices.Clone(k.Identities), NameKey: k.NameKey, Signer: random(ed25519.SeedSize),
		Generation: k.Generation + 1,
	}
	for _, r := range k.Retired { // what was pruned since needs no vouching for
		gone := func(id string) bool { _, ok := slices.BinarySearch(snapshots, id); return !ok }
		next.Retired = append(next.Retired, Retired{r.Public, slices.DeleteFunc(slices.Clone(r.Snapshots), gone)})
	}
	public := ed25519.NewKeyFromSeed(k.Signer).Public().(ed25519.PublicKey)
	next.Retired = append(next.Retired, Retired{public, snapshots})
	if err := next.newPair(strings.HasPrefix(k.Recipient, "age1pq1")); err != nil {
		return nil, err
	}
	return next, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// CanRead says whether the keys open what is stored.
func (k *Keys) CanRead() bool { return len(k.Identities) > 0 }

// Same says whether two keys are of one repository: an agent's and a reader's,
// or those before and after a rotation.
func (k *Keys) Same(other *Keys) bool {
	return k.Repository == other.Repository && bytes.Equal(k.NameKey, other.NameKey)
}

// Fingerprint tells a repository's keys from any others, before and after a
// rotation, and nothing else of them. It is taken from the first identity: an
// agent, or whoever stole its key, cannot make keys with the same one. Empty for an agent.
func (k *Keys) Fingerprint() string {
	if len(k.Identities) == 0 {
		return ""
	}
	h := hmac.New(sha256.New, k.NameKey)
	fmt.Fprintf(h, "backupd fingerprint\n%s\n%s\n", k.Repository, k.Identities[len(k.Identities)-1])
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Digest names one generation of keys, and tells nothing of them to whoever has no key.
func (k *Keys) Digest() string {
	sum := sha256.Sum256([]byte(k.Recipient))
	return hex.EncodeToString(sum[:16])
}

// String keeps secrets out of messages, as GoString and LogValue do.
func (k *Keys) String() string { return "keys of repository " + k.Repository }

// GoString implements fmt.GoStringer.
func (k *Keys) GoString() string { return k.String() }

// LogValue implements slog.LogValuer.
func (k *Keys) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Lock encrypts the keys to recipients: the content of keys/<n>.
func (k *Keys) Lock(recipients ...age.Recipient) ([]byte, error) {
	text, err := k.marshal()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the repository's keys: %w", err)
	}
	return out.Bytes(), nil
}

func (k *Keys) marshal() ([]byte, error) {
	text, err := json.Marshal(bundle{
		Repository: k.Repository, Generation: k.Generation, Recipient: k.Recipient, Identities: k.Identities,
		NameKey: hex.EncodeToString(k.NameKey), Signer: hex.EncodeToString(k.Signer), Retired: k.Retired,
	})
	return append(text, '\n'), err
}

// MaxLocked bounds keys/<n>: most of it are the ids of old snapshots.
const MaxLocked = 16 << 20

// Unlock decrypts what Lock returned. ErrWrongKey where no identity fits.
func Unlock(data []byte, identities ...age.Identity) (*Keys, error) {
	if len(identities) == 0 {
		return nil, ErrWrongKey
	}
	r, err := age.Decrypt(bytes.NewReader(data), identities...)
	if nomatch := (*age.NoIdentityMatchError)(nil); errors.As(err, &nomatch) {
		return nil, ErrWrongKey
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForged, err)
	}
	text, err := io.ReadAll(io.LimitReader(r, MaxLocked))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForged, err)
	}
	k, err := parseBundle(text)
	if err == nil && !k.CanRead() {
		err = fmt.Errorf("%w: keys: without an identity", ErrForged)
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

func parseBundle(text []byte) (*Keys, error) {
	bad := func(what any) (*Keys, error) { return nil, fmt.Errorf("%w: keys: %v", ErrForged, what) }
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var b bundle
	if err := dec.Decode(&b); err != nil {
		return bad(err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return bad("something follows them")
	}
	k := &Keys{Repository: b.Repository, Generation: b.Generation, Recipient: b.Recipient, Identities: b.Identities, Retired: b.Retired}
	var err1, err2 error
	k.NameKey, err1 = hex.DecodeString(b.NameKey)
	k.Signer, err2 = hex.DecodeString(b.Signer)
	if err1 != nil || err2 != nil || len(k.NameKey) != 32 || len(k.Signer) != ed25519.SeedSize {
		return bad("bad name key or signer")
	}
	if !isHash(k.Repository) || k.Generation < 1 {
		return bad("bad repository or generation")
	}
	for _, r := range k.Retired {
		if len(r.Public) != ed25519.PublicKeySize || !slices.IsSorted(r.Snapshots) {
			return bad("bad retired signer")
		}
	}
	if _, err := parseRecipient(k.Recipient); err != nil || !strings.HasPrefix(k.Recipient, "age1") {
		return bad("bad recipient")
	}
	ids, err := k.identities()
	if err != nil {
		return bad("bad identity")
	}
	if len(ids) > 0 {
		// Else what is written from now on could not be read.
		if _, recipient, _ := RecipientOf(ids[0]); recipient != k.Recipient {
			return bad("recipient and identity are no pair")
		}
	}
	return k, nil
}

func (k *Keys) identities() ([]age.Identity, error) {
	var all []age.Identity
	for _, s := range k.Identities {
		ids, err := age.ParseIdentities(strings.NewReader(s))
		if err != nil || len(ids) != 1 {
			return nil, errors.New("not an identity") // no part of it in a message
		}
		all = append(all, ids...)
	}
	return all, nil
}

// Seal encrypts a note to the repository: whoever has its identity reads it.
func (k *Keys) Seal(data []byte) ([]byte, error) {
	r, err := parseRecipient(k.Recipient)
	if err != nil {
		return nil, err
	}
	return encrypt(nil, data, r)
}

// Open decrypts what Seal returned.
func (k *Keys) Open(data []byte) ([]byte, error) {
	ids, err := k.identities()
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		return nil, ErrNoIdentity
	}
	r, err := age.Decrypt(bytes.NewReader(data), ids...)
	if err != nil {
		return nil, corrupt(err)
	}
	text, err := io.ReadAll(io.LimitReader(r, MaxLocked))
	if err != nil {
		return nil, corrupt(err)
	}
	return text, nil
}
