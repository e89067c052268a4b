package sealed

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/disko/backupd/internal/store/storetest"
)

func identity(t testing.TB) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestLockedKeysOpenForTheirIdentityOnly(t *testing.T) {
	k := newKeys(t, false)
	id, other := identity(t), identity(t)
	pass, err := PassphraseRecipient("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	right, _ := PassphraseIdentity("correct horse")
	wrong, _ := PassphraseIdentity("correct horsf")
	for _, c := range []struct {
		to    age.Recipient
		with  age.Identity
		opens bool
	}{{id.Recipient(), id, true}, {id.Recipient(), other, false}, {id.Recipient(), right, false}, {pass, right, true}, {pass, wrong, false}, {pass, id, false}} {
		data, err := k.Lock(c.to)
		if err != nil {
			t.Fatal(err)
		}
		got, err := Unlock(data, c.with)
		if c.opens != (err == nil) || !c.opens && !errors.Is(err, ErrWrongKey) {
			t.Errorf("%T with %T: %v", c.to, c.with, err)
		}
		if c.opens && (got.Fingerprint() != k.Fingerprint() || got.Digest() != k.Digest() || !got.Same(k)) {
			t.Errorf("%T: other keys came out", c.to)
		}
	}
	if _, err := Unlock(nil); !errors.Is(err, ErrWrongKey) {
		t.Errorf("without identities: %v", err)
	}
}

func TestNoFlippedBitOfLockedKeysGivesOtherKeys(t *testing.T) {
	k, id := newKeys(t, false), identity(t)
	data, err := k.Lock(id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	for pos := range data {
		bad := slices.Clone(data)
		bad[pos] ^= 1 << (pos % 8)
		if _, err := Unlock(bad, id); err == nil {
			t.Errorf("byte %d passes", pos)
		}
	}
}

// bundleOf is what a lock holds, to be edited.
func bundleOf(t testing.TB, k *Keys) map[string]any {
	t.Helper()
	text, err := k.marshal()
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestKeysThatWouldLoseDataAreRefused(t *testing.T) {
	k := newKeys(t, false)
	for name, edit := range map[string]func(m map[string]any){
		"another recipient":      func(m map[string]any) { m["recipient"] = identity(t).Recipient().String() },
		"no recipient":           func(m map[string]any) { m["recipient"] = "" },
		"an ssh recipient":       func(m map[string]any) { m["recipient"] = "ssh-ed25519 AAAA" },
		"a bad identity":         func(m map[string]any) { m["identities"] = []string{"AGE-SECRET-KEY-1X"} },
		"two identities in one":  func(m map[string]any) { m["identities"] = []string{k.Identities[0] + "\n" + k.Identities[0]} },
		"a short name key":       func(m map[string]any) { m["name_key"] = "00" },
		"a short signer":         func(m map[string]any) { m["signer"] = "00" },
		"a bad repository":       func(m map[string]any) { m["repository"] = "x" },
		"no generation":          func(m map[string]any) { m["generation"] = 0 },
		"a short retired signer": func(m map[string]any) { m["retired"] = []any{map[string]any{"public": "AAAA", "snapshots": nil}} },
		"something unknown":      func(m map[string]any) { m["new"] = true },
		"retired ids in disorder": func(m map[string]any) {
			m["retired"] = []any{map[string]any{"public": make([]byte, ed25519.PublicKeySize), "snapshots": []string{"b", "a"}}}
		},
	} {
		m := bundleOf(t, k)
		edit(m)
		text, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parseBundle(text)
		if !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%s: a secret is in the message", name)
		}
	}
	text, err := k.marshal()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseBundle(append(text, "{}"...)); !errors.Is(err, ErrForged) {
		t.Errorf("trailing data: %v", err)
	}
	// An agent's keys, locked as a reader's, would have writers write what nobody reads.
	agent := *k
	agent.Identities = nil
	id := identity(t)
	data, err := agent.Lock(id.Recipient())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Unlock(data, id); !errors.Is(err, ErrForged) {
		t.Errorf("locked keys without an identity: %v", err)
	}
}

func FuzzUnlock(f *testing.F) {
	k, id := newKeys(f, false), identity(f)
	data, err := k.Lock(id.Recipient())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:len(data)-1])
	f.Add([]byte("age-encryption.org/v1\n-> scrypt AAAA 99\nAAAA\n--- AAAA\n"))
	pass, _ := PassphraseIdentity("x")
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Unlock(data, id, pass)
		if err == nil && got.Fingerprint() != k.Fingerprint() {
			t.Fatal("opened as other keys")
		}
		if err != nil && !errors.Is(err, ErrWrongKey) && !errors.Is(err, ErrForged) {
			t.Fatal(err)
		}
	})
}

// A lock of an attacker's making cannot have us spend more than 256 MiB on a passphrase.
func TestALockThatCostsTooMuchIsRefused(t *testing.T) {
	r, err := age.NewScryptRecipient("x")
	if err != nil {
		t.Fatal(err)
	}
	r.SetWorkFactor(maxScryptWork + 1)
	data, err := newKeys(t, false).Lock(r)
	if err != nil {
		t.Fatal(err)
	}
	id, _ := PassphraseIdentity("x")
	if _, err := Unlock(data, id); err == nil {
		t.Error("it was opened")
	}
}

func TestAnAgentKeyIsOneLineThatComesBack(t *testing.T) {
	for _, postQuantum := range []bool{false, true} {
		k := newKeys(t, postQuantum)
		text, err := k.AgentKey()
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(text, " \n\t$'\"") {
			t.Errorf("%q is not for an environment variable", text)
		}
		got, err := ParseAgentKey("\n " + text + "\r\n")
		if err != nil || !got.Same(k) || got.Recipient != k.Recipient || !bytes.Equal(got.Signer, k.Signer) || got.CanRead() {
			t.Errorf("came back otherwise: %v", err)
		}
		for i := range text {
			for _, c := range []string{"", "A", "b"} {
				if changed := text[:i] + c + text[i+1:]; changed != text {
					if _, err := ParseAgentKey(changed); err == nil {
						t.Fatalf("letter %d may be %q", i, c)
					}
				}
			}
		}
	}
}

func FuzzParseAgentKey(f *testing.F) {
	k := newKeys(f, false)
	text, err := k.AgentKey()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add(agentPrefix)
	f.Add(agentPrefix + "AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseAgentKey(s)
		if err != nil {
			return
		}
		again, err := k.AgentKey()
		if err != nil {
			t.Fatal(err)
		}
		if other, err := ParseAgentKey(again); err != nil || !other.Same(k) {
			t.Fatalf("round trip: %v", err)
		}
	})
}

const manifestKey = "stacks/shop/snapshots/00000005-" + testRepository

func TestASignatureIsForOneManifestInOnePlace(t *testing.T) {
	k := newKeys(t, false)
	data := []byte("a manifest")
	signed := k.sign(manifestKey, data)
	if got, err := k.verify(manifestKey, signed); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%q, %v", got, err)
	}
	for pos := range signed {
		bad := slices.Clone(signed)
		bad[pos] ^= 1 << (pos % 8)
		if _, err := k.verify(manifestKey, bad); !errors.Is(err, ErrForged) {
			t.Errorf("byte %d: %v", pos, err)
		}
	}
	for name, key := range map[string]string{
		"a higher number": "stacks/shop/snapshots/00000006-" + testRepository, "another stack": "stacks/shop2/snapshots/00000005-" + testRepository,
		"another id": "stacks/shop/snapshots/00000005-" + strings.Repeat("0", 32),
	} {
		if _, err := k.verify(key, signed); !errors.Is(err, ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	twin := *k // another repository with the same keys
	twin.Repository = strings.Repeat("1", 32)
	if _, err := twin.verify(manifestKey, signed); !errors.Is(err, ErrForged) {
		t.Errorf("another repository: %v", err)
	}
	if _, err := k.verify(manifestKey, data); !errors.Is(err, ErrForged) {
		t.Errorf("unsigned: %v", err)
	}
	if _, err := k.verify(manifestKey, k.sign(manifestKey, nil)); err != nil {
		t.Errorf("an empty one: %v", err)
	}
}

func TestARetiredSignerCountsForWhatWasThere(t *testing.T) {
	first := newKeys(t, false)
	id := func(c string) string { return strings.Repeat(c, 32) }
	key := func(seq int, c string) string { return fmt.Sprintf("stacks/shop/snapshots/%08d-%s", seq, id(c)) }
	second, err := first.Rotate([]string{id("b"), id("a")})
	if err != nil {
		t.Fatal(err)
	}
	third, err := second.Rotate([]string{id("b"), id("c"), id("f")}) // a was pruned; f is a forgery that lies there
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what           string
		signer, reader *Keys
		key            string
		counts         bool
	}{
		{"old and known", first, second, key(1, "a"), true},
		{"old and known, by another number", first, second, key(7, "a"), true}, // its own signature says 7: verify compares what is in it
		{"forged for a low number", first, second, key(1, "e"), false},
		{"forged for a high number", first, second, key(9, "e"), false},
		{"new", second, second, key(3, "c"), true},
		{"two generations old", first, third, key(2, "b"), true},
		{"pruned", first, third, key(1, "a"), false},
		{"one generation old", second, third, key(3, "c"), true},
		{"forged between the rotations", first, third, key(3, "f"), false},
		{"newer than the reader's keys", third, second, key(4, "d"), false},
	} {
		_, err := c.reader.verify(c.key, c.signer.sign(c.key, []byte("m")))
		if (err == nil) != c.counts {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if first.Fingerprint() != third.Fingerprint() || first.Digest() == third.Digest() {
		t.Error("a rotation must keep the fingerprint and change the digest")
	}
}

// A thief of the agent key knows all but the identities.
func TestAnAgentsThiefCannotMakeKeysWithTheSameFingerprint(t *testing.T) {
	k := newKeys(t, false)
	forged := newKeys(t, false)
	forged.NameKey, forged.Repository, forged.Generation = k.NameKey, k.Repository, k.Generation+1
	if forged.Fingerprint() == k.Fingerprint() {
		t.Error("the fingerprint is the same")
	}
}

func TestKeysReadWhatEarlierGenerationsWrote(t *testing.T) {
	ctx := context.Background()
	for _, postQuantum := range []bool{false, true} {
		k := newKeys(t, postQuantum)
		mem := storetest.NewMemory()
		for gen := range 3 {
			if err := newWriter(t, mem, k).Put(ctx, fmt.Sprintf("stacks/s/volumes/v/packs/0123456789abcdef-%d", gen), noise(uint64(gen), 300_000)); err != nil {
				t.Fatal(err)
			}
			next, err := k.Rotate(nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := newWriter(t, mem, k).Get(ctx, packKeyOf(gen), 0, -1); err != nil {
				t.Fatal(err)
			}
			k = next
		}
		for gen := range 3 {
			if got, err := newWriter(t, mem, k).Get(ctx, packKeyOf(gen), 100_000, 1000); err != nil || !bytes.Equal(got, noise(uint64(gen), 300_000)[100_000:101_000]) {
				t.Errorf("generation %d: %v", gen, err)
			}
		}
	}
}

func packKeyOf(gen int) string {
	return fmt.Sprintf("stacks/s/volumes/v/packs/0123456789abcdef-%d", gen)
}

func TestSecretsAreNotPrinted(t *testing.T) {
	k := newKeys(t, false)
	text := fmt.Sprintf("%v %s %+v %#v", k, k, k, k)
	for _, secret := range []string{k.Identities[0], fmt.Sprintf("%x", k.NameKey), string(k.Signer)} {
		if strings.Contains(text, secret) {
			t.Errorf("a secret is in %q", text)
		}
	}
}
