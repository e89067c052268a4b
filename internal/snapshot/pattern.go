package snapshot

import (
	"fmt"
	"path"
	"strings"

	"github.com/disko/backupd/internal/snapshot/index"
)

// patterns are compiled --exclude or --include patterns.
type patterns []pattern

// pattern is one of them, split at its slashes.
type pattern struct {
	volume   string // empty: of every volume
	anchored bool   // begins at the volume's root; otherwise at any depth
	dirOnly  bool
	parts    []string
}

// parsePatterns compiles patterns of the form [VOLUME:]PATTERN. In a pattern
// * ? and [...] match within one component, ** any number of components; one
// that contains a slash (other than at its end) begins at the volume's root,
// any other matches a name at any depth; a slash at the end means directories only.
func parsePatterns(list []string, volumes []string) (patterns, error) {
	var ps patterns
	for _, s := range list {
		p := pattern{}
		body := s
		for _, v := range volumes {
			if rest, ok := strings.CutPrefix(s, v+":"); ok {
				p.volume, body = v, rest
			}
		}
		p.dirOnly = strings.HasSuffix(body, "/")
		body = strings.TrimSuffix(body, "/")
		p.anchored = strings.Contains(body, "/")
		body = strings.TrimPrefix(strings.TrimPrefix(body, "./"), "/")
		p.parts = strings.Split(body, "/")
		for _, part := range p.parts {
			if part == "" || part == "." || part == ".." {
				return nil, fmt.Errorf("%w: pattern %q: empty, '.' or '..' component; write it relative to the volume's root, as in \"cache/**\" or \"*.log\"", ErrUsage, s)
			}
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("%w: pattern %q: %q is not closed or is empty", ErrUsage, s, part)
			}
		}
		ps = append(ps, p)
	}
	return ps, nil
}

// match says whether a pattern matches this very path.
func (ps patterns) match(volume, name string, dir bool) bool {
	if name == index.Root {
		return false
	}
	var parts []string
	for i := range ps {
		p := &ps[i]
		if p.volume != "" && p.volume != volume || p.dirOnly && !dir {
			continue
		}
		if parts == nil {
			parts = strings.Split(name, "/")
		}
		if p.anchored && matchParts(p.parts, parts) || !p.anchored && matchParts(p.parts, parts[len(parts)-1:]) {
			return true
		}
	}
	return false
}

// matchTree says whether a pattern matches the path or a directory above it.
func (ps patterns) matchTree(volume, name string, dir bool) bool {
	if ps.match(volume, name, dir) {
		return true
	}
	for i := range len(name) {
		if name[i] == '/' && ps.match(volume, name[:i], true) {
			return true
		}
	}
	return false
}

// matchParts walks pattern and name together. Only the last ** is ever tried
// again, so the time is bounded by the product of the lengths.
func matchParts(pat, name []string) bool {
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(name) {
		switch {
		case i < len(pat) && pat[i] == "**":
			star, mark = i, j
			i++
		case i < len(pat) && matchName(pat[i], name[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(pat) && pat[i] == "**" && i < len(pat)-1 {
		i++
	}
	return i == len(pat)
}

func matchName(pat, name string) bool {
	ok, _ := path.Match(pat, name)
	return ok
}
