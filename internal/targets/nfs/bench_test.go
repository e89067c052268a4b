package nfs

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	mathrand "math/rand/v2"
	"sync"
	"testing"

	"github.com/disko/backupd/internal/testservers"
)

// Packs are 16 MiB, and an upload has two of them under way.
func BenchmarkPut(b *testing.B) {
	s := testservers.Ganesha(b, testservers.NFSOptions{})
	target := open(b, at(s, ""))
	data := random(16 << 20)
	b.SetBytes(2 * int64(len(data)))
	n := 0
	for b.Loop() {
		var wg sync.WaitGroup
		for range 2 {
			n++
			key := fmt.Sprintf("stacks/shop/volumes/data/packs/%d", n)
			wg.Go(func() {
				if err := target.Put(context.Background(), key, data); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
}

func BenchmarkGet(b *testing.B) {
	s := testservers.Ganesha(b, testservers.NFSOptions{})
	target := open(b, at(s, ""))
	const key = "stacks/shop/volumes/data/packs/0123456789abcdef-0"
	data := random(16 << 20)
	if err := target.Put(context.Background(), key, data); err != nil {
		b.Fatal(err)
	}
	for _, size := range []int{16 << 10, 256 << 10, 4 << 20, 16 << 20} {
		b.Run(fmt.Sprintf("%dKiB", size>>10), func(b *testing.B) {
			b.SetBytes(int64(size))
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					off := 0
					if size < len(data) {
						off = mathrand.IntN(len(data) - size)
					}
					got, err := target.Get(context.Background(), key, int64(off), int64(size))
					if err != nil || !bytes.Equal(got, data[off:off+size]) {
						b.Errorf("%d bytes, %v", len(got), err)
						return
					}
				}
			})
		})
	}
}

// random cannot be compressed, or mistaken for another's.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}
