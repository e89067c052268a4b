package sealed

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// Vouch returns a text's code of authentication that only a holder of the
// repository's identities can make: who may write, an agent or a thief of its
// key, cannot. It holds through rotations. Empty for an agent.
func (k *Keys) Vouch(text string) string {
	if len(k.Identities) == 0 {
		return ""
	}
	key := sha256.Sum256([]byte("backupd vouch\n" + k.Repository + "\n" + k.Identities[len(k.Identities)-1] + "\n"))
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(text))
	return hex.EncodeToString(h.Sum(nil))
}

// Vouched says whether a code is the one that Vouch makes.
func (k *Keys) Vouched(text, code string) bool {
	return len(k.Identities) > 0 && hmac.Equal([]byte(k.Vouch(text)), []byte(code))
}
