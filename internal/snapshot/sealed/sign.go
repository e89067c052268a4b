package sealed

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// A manifest's signature is a zstd skippable frame behind the manifest's own
// frame, inside the age file: `age -d | zstd -d` passes over it.

const (
	skippable = 0x184D2A51
	signedLen = 8 + ed25519.SignatureSize
)

// message is what a signature signs: the manifest's bytes, and the key it is
// for, which says stack, sequence and id. The parent is in the manifest.
func (k *Keys) message(key string, data []byte) []byte {
	return fmt.Appendf(nil, "backupd manifest 1\n%s\n%s\n%x\n", k.Repository, key, sha256.Sum256(data))
}

// sign appends a manifest's signature.
func (k *Keys) sign(key string, data []byte) []byte {
	sig := ed25519.Sign(ed25519.NewKeyFromSeed(k.Signer), k.message(key, data))
	out := make([]byte, 0, len(data)+signedLen)
	out = append(out, data...)
	out = binary.LittleEndian.AppendUint32(out, skippable)
	out = binary.LittleEndian.AppendUint32(out, ed25519.SignatureSize)
	return append(out, sig...)
}

// verify checks a manifest's signature and takes it off.
func (k *Keys) verify(key string, data []byte) ([]byte, error) {
	n := len(data) - signedLen
	if n < 0 || binary.LittleEndian.Uint32(data[n:]) != skippable || binary.LittleEndian.Uint32(data[n+4:]) != ed25519.SignatureSize {
		return nil, fmt.Errorf("%w: it bears no signature", ErrForged)
	}
	body, sig := data[:n:n], data[n+8:]
	message := k.message(key, body)
	if ed25519.Verify(ed25519.NewKeyFromSeed(k.Signer).Public().(ed25519.PublicKey), message, sig) {
		return body, nil
	}
	for _, r := range k.Retired {
		if _, known := slices.BinarySearch(r.Snapshots, snapshotID(key)); known && ed25519.Verify(r.Public, message, sig) {
			return body, nil
		}
	}
	return nil, fmt.Errorf("%w: its signature does not fit: it was forged, changed, or moved here from another place", ErrForged)
}

// snapshotID is the id in a manifest's key.
func snapshotID(key string) string { return key[strings.LastIndexByte(key, '-')+1:] }
