package sealed

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"strings"
	"testing"

	"filippo.io/age"
	"golang.org/x/crypto/ssh"
)

// sshKey returns a private key's text and its public half's.
func sshKey(t *testing.T, key any) (private, public string) {
	t.Helper()
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
}

func TestEveryKindOfRecipientOpensWithItsIdentity(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	hybrid, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	x := identity(t)
	edPrivate, edPublic := sshKey(t, ed)
	rsaPrivate, rsaPublic := sshKey(t, rsaKey)
	for _, c := range []struct{ private, public string }{
		{x.String(), x.Recipient().String()},
		{"# created: today\n# public key: " + x.Recipient().String() + "\n" + x.String() + "\n", "# a comment\n\n" + x.Recipient().String() + "\r\n"},
		{hybrid.String(), hybrid.Recipient().String()},
		{edPrivate, edPublic},
		{rsaPrivate, rsaPublic},
	} {
		to, names, err := ParseRecipients(c.public)
		if err != nil || len(to) != 1 || len(names) != 1 {
			t.Fatalf("%.20s: %d, %v", c.public, len(to), err)
		}
		with, err := ParseIdentities(c.private)
		if err != nil || len(with) != 1 {
			t.Fatalf("%.20s: %v", c.public, err)
		}
		k := newKeys(t, false)
		data, err := k.Lock(to...)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Unlock(data, with...); err != nil || !got.Same(k) {
			t.Errorf("%.20s: %v", c.public, err)
		}
		// An identity tells its recipient.
		r, _, ok := RecipientOf(with[0])
		if !ok {
			t.Fatalf("%.20s: has no recipient", c.public)
		}
		if data, err = k.Lock(r); err != nil {
			t.Fatal(err)
		}
		if _, err := Unlock(data, with...); err != nil {
			t.Errorf("%.20s: by its identity's recipient: %v", c.public, err)
		}
	}
}

func TestWhatIsNoKeyIsRefusedAndNotRepeated(t *testing.T) {
	x := identity(t)
	secret := x.String()
	for _, text := range []string{"", "\n# only a comment\n", "age1nonsense", secret, "ssh-ed25519 nonsense", "hello", "ssh-dss AAAA"} {
		if _, _, err := ParseRecipients(text); err == nil || strings.Contains(err.Error(), secret[20:]) {
			t.Errorf("recipient %.20q: %v", text, err)
		}
	}
	broken := secret[:len(secret)-3] + "QQQ"
	for _, text := range []string{"", "nonsense", x.Recipient().String(), broken, "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"} {
		if _, err := ParseIdentities(text); err == nil || strings.Contains(err.Error(), broken[20:40]) {
			t.Errorf("identity %.20q: %v", text, err)
		}
	}
}
