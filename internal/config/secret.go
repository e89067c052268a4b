package config

import (
	"fmt"
	"io"
	"log/slog"
)

// mask is what is shown of a secret.
const mask = "******"

// Secret is a value that no log, error or listing shows: only Reveal returns it.
type Secret struct{ value string }

// NewSecret hides a value.
func NewSecret(value string) Secret { return Secret{value} }

// Reveal returns what is hidden.
func (s Secret) Reveal() string { return s.value }

// Empty says that there is nothing to hide.
func (s Secret) Empty() bool { return s.value == "" }

func (s Secret) String() string {
	if s.Empty() {
		return ""
	}
	return mask
}

// Format masks the value for every verb, %#v and %d among them.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// LogValue implements slog.LogValuer.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText masks the value in JSON.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
