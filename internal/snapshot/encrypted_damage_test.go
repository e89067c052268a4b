package snapshot

import (
	"fmt"
	"slices"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
)

// encryptedWard has two locks, a rotation, and snapshots of both generations.
func encryptedWard(t *testing.T) *ward {
	t.Helper()
	c, _ := newIdentity(t)
	other, _ := newIdentity(t)
	more := recipientsOf(t, other)
	more.Identities = c.Identities
	w := newWardWith(t, more)
	w.credentials = c
	return w
}

func TestNoDamageToAnEncryptedRepositoryPassesUnseen(t *testing.T) {
	w := encryptedWard(t)
	var all []damage
	for _, key := range w.store.Keys() {
		data := w.store.Bytes(key)
		// Some only: package sealed flips every byte of every kind of object.
		most := 12
		if testing.Short() || slices.Contains(extraKeys, key) {
			most = 3
		}
		for pos := 0; pos < len(data); pos += max(1, len(data)/most) {
			all = append(all, damage{key: key, flip: true, name: fmt.Sprintf("bit %d of byte %d of %s", pos%8, pos, key), do: func(st *storetest.Memory) {
				data := st.Bytes(key)
				data[pos] ^= 1 << (pos % 8)
				st.SetBytes(key, data)
			}})
		}
		for name, now := range map[string][]byte{
			"emptied": {}, "cut to half": data[:len(data)/2], "cut by one byte": data[:len(data)-1], "one byte longer": append(slices.Clone(data), 0),
			"twice in a row": append(slices.Clone(data), data...), "zeroed": make([]byte, len(data)), "without its first byte": data[1:],
		} {
			all = append(all, damage{key: key, name: key + " " + name, do: func(st *storetest.Memory) { st.SetBytes(key, now) }})
		}
		all = append(all, damage{key: key, name: key + " deleted", do: func(st *storetest.Memory) { st.Remove(key) }, hidden: isManifest(key)})
	}
	w.wantFound(all)
}

func TestNoSwappedObjectOfAnEncryptedRepositoryPassesUnseen(t *testing.T) {
	w := encryptedWard(t)
	var all []damage
	keys := w.store.Keys()
	for i, a := range keys {
		for _, b := range keys[i+1:] {
			all = append(all, damage{name: a + " swapped with " + b, do: func(st *storetest.Memory) {
				one, two := st.Bytes(a), st.Bytes(b)
				st.SetBytes(a, two)
				st.SetBytes(b, one)
			}})
			all = append(all, damage{name: a + " over " + b, do: func(st *storetest.Memory) { st.SetBytes(b, st.Bytes(a)) }})
			all = append(all, damage{name: b + " over " + a, do: func(st *storetest.Memory) { st.SetBytes(a, st.Bytes(b)) }})
		}
	}
	w.wantFound(all)
}
