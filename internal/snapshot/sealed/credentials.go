package sealed

import (
	"errors"
	"fmt"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

// scryptWork is the cost of a passphrase, as the logarithm of scrypt's N: 64
// MiB of memory and about 0.2 s. age's own default, 18, takes 256 MiB, which
// is more than a backup may. docs/adr/0018 has the reasons.
const scryptWork = 16

// maxScryptWork bounds what a hostile keys/<n> can make us spend: 256 MiB, as
// age's own default does.
const maxScryptWork = 18

// ParseRecipients reads age recipients (X25519 and post-quantum hybrid) and
// ssh public keys (ed25519 and rsa), one to a line.
func ParseRecipients(text string) (list []age.Recipient, names []string, err error) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, err := parseRecipient(line)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, r)
		names = append(names, line)
	}
	if len(list) == 0 {
		return nil, nil, errors.New("there is no recipient in it: give an age recipient (age1...) or an ssh public key")
	}
	return list, names, nil
}

func parseRecipient(s string) (age.Recipient, error) {
	switch {
	case strings.HasPrefix(s, "ssh-"):
		r, err := agessh.ParseRecipient(s)
		if err != nil {
			return nil, fmt.Errorf("ssh public key: %w", err)
		}
		return r, nil
	case strings.HasPrefix(s, "AGE-SECRET-KEY-"):
		return nil, errors.New("this is an identity, a secret; a recipient begins with age1 (`age-keygen -y` prints it)")
	}
	list, err := age.ParseRecipients(strings.NewReader(s))
	if err != nil {
		return nil, errors.New("not a recipient: it begins with age1, ssh-ed25519 or ssh-rsa")
	}
	return list[0], nil
}

// ParseIdentities reads age identities, one to a line, or one ssh private key without a passphrase.
func ParseIdentities(text string) ([]age.Identity, error) {
	if strings.Contains(text, "-----BEGIN") {
		id, err := agessh.ParseIdentity([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("ssh private key: %w; one with a passphrase has to be decrypted first (ssh-keygen -p)", err)
		}
		return []age.Identity{id}, nil
	}
	ids, err := age.ParseIdentities(strings.NewReader(text))
	if err != nil {
		return nil, errors.New("there is no age identity (AGE-SECRET-KEY-1...) and no ssh private key in it")
	}
	return ids, nil
}

// RecipientOf returns the recipient of an identity, where it has one: what
// keys are locked to, that the identity shall open.
func RecipientOf(id age.Identity) (age.Recipient, string, bool) {
	switch id := id.(type) {
	case *age.X25519Identity:
		return id.Recipient(), id.Recipient().String(), true
	case *age.HybridIdentity:
		return id.Recipient(), id.Recipient().String(), true
	case *agessh.Ed25519Identity:
		return id.Recipient(), "an ssh-ed25519 key", true
	case *agessh.RSAIdentity:
		return id.Recipient(), "an ssh-rsa key", true
	}
	return nil, "", false
}

// PassphraseRecipient returns what locks keys with a passphrase.
func PassphraseRecipient(passphrase string) (age.Recipient, error) {
	r, err := age.NewScryptRecipient(passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	r.SetWorkFactor(scryptWork)
	return r, nil
}

// PassphraseIdentity returns what unlocks keys with a passphrase.
func PassphraseIdentity(passphrase string) (age.Identity, error) {
	id, err := age.NewScryptIdentity(passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase: %w", err)
	}
	id.SetMaxWorkFactor(maxScryptWork)
	return id, nil
}
