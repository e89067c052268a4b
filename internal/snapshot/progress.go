package snapshot

import "sync/atomic"

// Progress is how far a command is; it may be read at any time.
type Progress struct {
	Files atomic.Int64 // entries dealt with
	Bytes atomic.Int64 // of content dealt with
	// TotalFiles and TotalBytes are what there is to do, as far as is known:
	// an estimate from the parent for a backup; 0 while unknown.
	TotalFiles atomic.Int64
	TotalBytes atomic.Int64
	Stored     atomic.Int64 // bytes sent to the target
}

// orNew lets the engine count where nobody looks.
func (p *Progress) orNew() *Progress {
	if p == nil {
		return &Progress{}
	}
	return p
}
