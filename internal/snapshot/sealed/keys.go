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
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/disko/backupd/internal/snapshot/pack"
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

// Retired is a signing key that was rotated out: it counts for what it signed before.
type Retired struct {
	Public []byte `json:"public"`
	// Last is the highest sequence number of each stack when it was retired.
	Last map[string]uint64 `json:"last"`
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
// with the old ones stays readable; last are the highest sequence numbers of
// the stacks, beyond which the old signing key does not count any more.
func (k *Keys) Rotate(last map[string]uint64) (*Keys, error) {
	if len(k.Identities) == 0 {
		return nil, ErrNoIdentity
	}
	public := ed25519.NewKeyFromSeed(k.Signer).Public().(ed25519.PublicKey)
	next := &Keys{
		Repository: k.Repository, Identities: slices.Clone(k.Identities), NameKey: k.NameKey, Signer: random(ed25519.SeedSize),
		Retired: append(slices.Clone(k.Retired), Retired{Public: public, Last: last}), Generation: k.Generation + 1,
	}
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

// Fingerprint tells these keys from any others, and nothing else of them.
func (k *Keys) Fingerprint() string {
	h := hmac.New(sha256.New, k.NameKey)
	fmt.Fprintf(h, "backupd fingerprint\n%s\n", k.Repository)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// String keeps secrets out of messages.
func (k *Keys) String() string { return "keys of repository " + k.Repository }

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

// maxBundle bounds keys/<n>, decrypted.
const maxBundle = 16 << 20

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
	text, err := io.ReadAll(io.LimitReader(r, maxBundle))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrForged, err)
	}
	return parseBundle(text)
}

func parseBundle(text []byte) (*Keys, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	var b bundle
	if err := dec.Decode(&b); err != nil {
		return nil, fmt.Errorf("%w: keys: %w", ErrForged, err)
	}
	k := &Keys{Repository: b.Repository, Generation: b.Generation, Recipient: b.Recipient, Identities: b.Identities, Retired: b.Retired}
	var err1, err2 error
	k.NameKey, err1 = hex.DecodeString(b.NameKey)
	k.Signer, err2 = hex.DecodeString(b.Signer)
	if err1 != nil || err2 != nil || len(k.NameKey) != 32 || len(k.Signer) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: keys: bad name key or signer", ErrForged)
	}
	for _, r := range k.Retired {
		if len(r.Public) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%w: keys: bad retired signer", ErrForged)
		}
	}
	if _, err := parseRecipient(k.Recipient); err != nil {
		return nil, fmt.Errorf("%w: keys: %w", ErrForged, err)
	}
	if _, err := k.identities(); err != nil {
		return nil, fmt.Errorf("%w: keys: %w", ErrForged, err)
	}
	return k, nil
}

func (k *Keys) identities() ([]age.Identity, error) {
	var all []age.Identity
	for _, s := range k.Identities {
		ids, err := age.ParseIdentities(strings.NewReader(s))
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	return all, nil
}

// agentPrefix begins an agent key, so that it is known for what it is.
const agentPrefix = "BACKUPD-AGENT-KEY-1-"

// AgentKey is the secret of an agent that may write and read nothing: one
// line of text.
func (k *Keys) AgentKey() (string, error) {
	agent := Keys{Repository: k.Repository, Recipient: k.Recipient, NameKey: k.NameKey, Signer: k.Signer, Generation: k.Generation}
	text, err := agent.marshal()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return agentPrefix + base64.RawURLEncoding.EncodeToString(append(text, sum[:4]...)), nil
}

// ParseAgentKey reads what AgentKey returned.
func ParseAgentKey(s string) (*Keys, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), agentPrefix)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %s: give the line that `backupd init` printed", agentPrefix)
	}
	data, err := base64.RawURLEncoding.DecodeString(rest)
	if err != nil || len(data) < 4 {
		return nil, errors.New("it is cut short or has a wrong letter: copy the whole line that `backupd init` printed")
	}
	text := data[:len(data)-4]
	if sum := sha256.Sum256(text); !bytes.Equal(sum[:4], data[len(data)-4:]) {
		return nil, errors.New("it is cut short or has a wrong letter: copy the whole line that `backupd init` printed")
	}
	k, err := parseBundle(text)
	if err == nil && len(k.Identities) > 0 {
		err = errors.New("it holds an identity, which an agent must not have")
	}
	return k, err
}

// Seal encrypts a note to the repository: whoever has its identity reads it.
func (k *Keys) Seal(data []byte) ([]byte, error) {
	r, err := parseRecipient(k.Recipient)
	if err != nil {
		return nil, err
	}
	return encrypt(new(bytes.Buffer), data, r)
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
	text, err := io.ReadAll(io.LimitReader(r, maxBundle))
	if err != nil {
		return nil, corrupt(err)
	}
	return text, nil
}

// CheckLocked says what is wrong with the form of keys/<n>; nil for nothing.
func CheckLocked(data []byte) error {
	r := bytes.NewReader(data)
	header, err := age.ExtractHeader(r)
	if err != nil {
		return fmt.Errorf("%w: no age file: %w", pack.ErrCorrupt, err)
	}
	if len(data) < len(header)+2*tagSize {
		return fmt.Errorf("%w: it is cut short", pack.ErrCorrupt)
	}
	return nil
}
