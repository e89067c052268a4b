package config

import (
	"strings"
	"time"
)

// Value is a setting as it counts, and where it came from. Secrets are masked.
type Value struct {
	Key    string   `json:"key"`
	Values []string `json:"values"` // none: not set, and no default
	From   string   `json:"from"`   // flag, environment, file, label or default
	Place  string   `json:"place,omitempty"`
	Secret bool     `json:"secret,omitempty"`

	restart bool
}

// Text is the value on one line.
func (v Value) Text() string { return strings.Join(v.Values, ", ") }

// Where is the place, or that it is the default.
func (v Value) Where() string { return From{Kind: v.From, Place: v.Place}.String() }

// Effective returns every setting with its value and where that came from:
// those of the agent first, then policy by policy, then flags that are set.
func (c *Config) Effective() []Value { return c.effective }

func (r *resolver) effective() []Value {
	var out []Value
	for _, s := range r.t.settings[:r.t.own] {
		if !s.policy || s.only {
			out = r.show(out, s.Name, s, "")
		}
	}
	for _, p := range r.c.Policies {
		for _, s := range settings {
			if s.policy {
				out = r.show(out, policyKey(p.Name, s.Name), s, p.Name)
			}
		}
	}
	for _, s := range r.t.settings[r.t.own:] {
		if _, set := r.find(s.Name); set {
			out = r.show(out, s.Name, s, "")
		}
	}
	return out
}

func (r *resolver) show(out []Value, key string, s Setting, policy string) []Value {
	v, set := r.value(s.Name, policy)
	if strings.HasSuffix(s.Name, "-file") && !set {
		return out // an other way to give what is shown itself
	}
	shown := Value{Key: key, Values: []string{}, From: v.from.Kind, Place: v.from.Place, Secret: s.secret, restart: s.restart}
	for _, text := range v.texts {
		if s.secret {
			text = mask
		}
		shown.Values = append(shown.Values, text)
	}
	for _, h := range v.hooks {
		shown.Values = append(shown.Values, h.String())
	}
	if s.Name == "time-zone" && !set {
		shown.Values = []string{time.Local.String()}
	}
	return append(out, shown)
}
