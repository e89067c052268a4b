package sealed

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
)

// agentPrefix begins an agent key, so that it is known for what it is.
const agentPrefix = "BACKUPD-AGENT-KEY-1-"

// AgentKey is the secret of an agent that may write and read nothing: one
// line of text.
func (k *Keys) AgentKey() (string, error) {
	agent := Keys{Repository: k.Repository, Recipient: k.Recipient, NameKey: k.NameKey, Signer: k.Signer, Generation: k.Generation}
	text, err := agent.marshal()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return agentPrefix + base64.RawURLEncoding.EncodeToString(append(text, sum[:4]...)), nil
}

// ParseAgentKey reads what AgentKey returned.
func ParseAgentKey(s string) (*Keys, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(s), agentPrefix)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %s: give the line that `backupd init` printed", agentPrefix)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	text := data[:max(0, len(data)-4)]
	if sum := sha256.Sum256(text); err != nil || !bytes.Equal(sum[:4], data[len(text):]) {
		return nil, errors.New("it is cut short or has a wrong letter: copy the whole line that `backupd init` printed")
	}
	k, err := parseBundle(text)
	if err == nil && len(k.Identities) > 0 {
		err = errors.New("it holds an identity, which an agent must not have")
	}
	return k, err
}
