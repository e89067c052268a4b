package config

import (
	"slices"
	"sync"
)

// Live is a configuration that can be read again while the agent runs.
type Live struct {
	src Sources

	mu  sync.Mutex
	now *Config
}

// Open loads a configuration that can be reloaded.
func Open(src Sources) (*Live, error) {
	c, err := Load(src)
	if err != nil {
		return nil, err
	}
	return &Live{src: src, now: c}, nil
}

// Current returns the configuration that counts. It does not change; a reload makes a new one.
func (l *Live) Current() *Config {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.now
}

// Reload reads the sources again and says what is different. With an error the
// old configuration stays. Flags, environment and labels cannot change while a
// process lives: it is the file, and the files of secrets, that are new.
func (l *Live) Reload() ([]Change, error) {
	c, err := Load(l.src)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	changes := compare(l.now, c)
	l.now = c
	return changes, nil
}

// Change is a setting that is different after a reload.
type Change struct {
	Key      string
	Old, New string // masked, if it is a secret; empty for none
	Restart  bool   // it counts after a restart only
}

func compare(old, now *Config) []Change {
	var out []Change
	before := map[string]Value{}
	for _, v := range old.effective {
		before[v.Key] = v
	}
	for _, v := range now.effective {
		was, ok := before[v.Key]
		delete(before, v.Key)
		if !ok || !slices.Equal(was.Values, v.Values) {
			out = append(out, Change{Key: v.Key, Old: was.Text(), New: v.Text(), Restart: v.restart})
		}
	}
	for _, v := range old.effective {
		if _, gone := before[v.Key]; gone {
			out = append(out, Change{Key: v.Key, Old: v.Text(), Restart: v.restart})
		}
	}
	if !slices.Equal(old.Notify, now.Notify) && !hasKey(out, "notify") {
		out = append(out, Change{Key: "notify", Old: mask, New: mask})
	}
	if old.Ping != now.Ping && !hasKey(out, "ping") {
		out = append(out, Change{Key: "ping", Old: mask, New: mask})
	}
	return out
}

func hasKey(changes []Change, key string) bool {
	return slices.ContainsFunc(changes, func(c Change) bool { return c.Key == key })
}
