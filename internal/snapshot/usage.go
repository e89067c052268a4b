package snapshot

import (
	"cmp"
	"context"
	"slices"
)

// Usage tells what snapshots take on the target, from their manifests alone.
// Sizes are in bytes, of the contents; encryption adds a little to each object.
type Usage struct {
	Stacks []StackUsage `json:"stacks"`
}

// StackUsage is what one stack takes.
type StackUsage struct {
	Stack string `json:"stack"`
	Bytes int64  `json:"bytes"` // of all packs that its snapshots need
	// Forgotten is what only forgotten snapshots need: prune frees it.
	Forgotten int64           `json:"forgotten"`
	Volumes   []VolumeUsage   `json:"volumes"`
	Snapshots []SnapshotUsage `json:"snapshots"`
}

// VolumeUsage is what one volume takes in all snapshots together.
type VolumeUsage struct {
	Volume string `json:"volume"`
	Bytes  int64  `json:"bytes"`
}

// SnapshotUsage is what one snapshot takes.
type SnapshotUsage struct {
	ID     string `json:"id"`
	Own    int64  `json:"own"`    // needed by no other: free once it is forgotten and pruned
	Shared int64  `json:"shared"` // needed by others as well
}

// Usage adds up what the packs of snapshots take, each counted once. Snapshots
// that cannot be read are left out.
func (r *Repository) Usage(ctx context.Context, stack string) (*Usage, error) {
	list, err := r.ListAll(ctx, stack)
	if err != nil {
		return nil, err
	}
	out := &Usage{Stacks: []StackUsage{}}
	for len(list) > 0 {
		n := slices.IndexFunc(list, func(l Listed) bool { return l.Stack != list[0].Stack })
		if n < 0 {
			n = len(list)
		}
		out.Stacks = append(out.Stacks, stackUsage(list[:n]))
		list = list[n:]
	}
	return out, nil
}

// stackUsage is Usage of one stack.
func stackUsage(list []Listed) StackUsage {
	out := StackUsage{Stack: list[0].Stack, Volumes: []VolumeUsage{}, Snapshots: []SnapshotUsage{}}
	needs := map[string]int{} // packs, by how many snapshots need them that are not forgotten
	seen := map[string]bool{}
	volumes := map[string]int64{}
	each := func(do func(l Listed, volume, key string, size int64)) {
		for _, l := range list {
			if l.Err != nil {
				continue
			}
			for i := range l.Manifest.Volumes {
				one := Manifest{Stack: l.Stack, Volumes: l.Manifest.Volumes[i : i+1]}
				for key, size := range one.sizes() {
					do(l, one.Volumes[0].Name, key, size)
				}
			}
		}
	}
	each(func(l Listed, _, key string, _ int64) {
		if !l.Forgotten {
			needs[key]++
		}
	})
	own, shared := map[string]int64{}, map[string]int64{}
	each(func(l Listed, volume, key string, size int64) {
		switch {
		case l.Forgotten:
		case needs[key] == 1:
			own[l.ID] += size
		default:
			shared[l.ID] += size
		}
		if seen[key] {
			return
		}
		seen[key] = true
		if needs[key] == 0 {
			out.Forgotten += size
			return
		}
		out.Bytes += size
		volumes[volume] += size
	})
	for name, bytes := range volumes {
		out.Volumes = append(out.Volumes, VolumeUsage{name, bytes})
	}
	slices.SortFunc(out.Volumes, func(a, b VolumeUsage) int { return cmp.Compare(a.Volume, b.Volume) })
	for _, l := range list {
		if l.Err == nil && !l.Forgotten {
			out.Snapshots = append(out.Snapshots, SnapshotUsage{l.ID, own[l.ID], shared[l.ID]})
		}
	}
	return out
}
