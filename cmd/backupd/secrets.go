package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/snapshot/sealed"
)

// secrets are the flags that say how a repository is encrypted.
type secrets struct {
	passphrase, passphraseFile string
	identities, recipients     []string
	agentKey, agentKeyFile     string
	postQuantum                bool
}

// secretFlags are those for which an empty value is a slip, and never "none":
// a script or Compose file with an unset variable must not turn encryption off.
var secretFlags = []string{
	"passphrase", "passphrase-file", "identity", "recipient", "agent-key", "agent-key-file", "new-passphrase-file", "new-recipient",
}

func (s *secrets) flags(f *pflag.FlagSet) {
	f.StringVar(&s.passphrase, "passphrase", "", "passphrase of an encrypted repository; better: BACKUPD_PASSPHRASE_FILE")
	f.StringVar(&s.passphraseFile, "passphrase-file", "", "`FILE` that holds the passphrase")
	f.StringArrayVar(&s.identities, "identity", nil, "`FILE` with age identities or an ssh private key; may be repeated")
	f.StringArrayVar(&s.recipients, "recipient", nil, "age recipient or ssh public key (or a file of them) for the keys of a new repository; may be repeated")
	f.StringVar(&s.agentKey, "agent-key", "", "key of an agent that may write snapshots and not read them; better: BACKUPD_AGENT_KEY_FILE")
	f.StringVar(&s.agentKeyFile, "agent-key-file", "", "`FILE` that holds the agent key")
}

// credentials reads the secrets; nil where none is given. A secret that is
// named and cannot be had is an error, always.
func (s *secrets) credentials() (*snapshot.Credentials, error) {
	c := &snapshot.Credentials{PostQuantum: s.postQuantum}
	var err error
	if c.Passphrase, err = secret("passphrase", s.passphrase, s.passphraseFile); err != nil {
		return nil, err
	}
	agent, err := secret("agent-key", s.agentKey, s.agentKeyFile)
	if err != nil {
		return nil, err
	}
	if agent != "" {
		if c.Agent, err = sealed.ParseAgentKey(agent); err != nil {
			return nil, fmt.Errorf("%w: agent key: %w", snapshot.ErrUsage, err)
		}
	}
	for _, name := range s.identities {
		text, err := readSecret("identity", name)
		if err != nil {
			return nil, err
		}
		ids, err := sealed.ParseIdentities(text)
		if err != nil {
			return nil, fmt.Errorf("%w: --identity %s: %w", snapshot.ErrUsage, name, err)
		}
		c.Identities = append(c.Identities, ids...)
	}
	for _, r := range s.recipients {
		if err := addRecipient(c, r); err != nil {
			return nil, err
		}
	}
	if c.Passphrase == "" && c.Agent == nil && len(c.Identities) == 0 && len(c.Recipients) == 0 {
		return nil, nil
	}
	return c, nil
}

func addRecipient(c *snapshot.Credentials, r string) error {
	text := r
	if !isRecipient(r) {
		var err error
		if text, err = readSecret("recipient", r); err != nil {
			return err
		}
	}
	list, names, err := sealed.ParseRecipients(text)
	if err != nil {
		return fmt.Errorf("%w: --recipient: %w", snapshot.ErrUsage, err)
	}
	c.Recipients = append(c.Recipients, list...)
	c.RecipientNames = append(c.RecipientNames, names...)
	return nil
}

// secret returns the value of a secret that is given itself or by a file.
func secret(name, value, file string) (string, error) {
	if value != "" && file != "" {
		return "", fmt.Errorf("%w: --%s and --%s-file are both given (or BACKUPD_%[4]s and BACKUPD_%[4]s_FILE); give one", snapshot.ErrUsage, name, name, envName(name))
	}
	if file == "" {
		return value, nil
	}
	return readSecret(name+"-file", file)
}

func readSecret(flag, file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", fmt.Errorf("%w: --%s: read %s: %w; nothing was done: without the secret it would be done unencrypted", snapshot.ErrUsage, flag, file, err)
	}
	text := strings.TrimRight(string(data), "\r\n")
	if strings.TrimSpace(text) == "" {
		return "", fmt.Errorf("%w: --%s: %s is empty; nothing was done: without the secret it would be done unencrypted", snapshot.ErrUsage, flag, file)
	}
	return text, nil
}

func envName(flag string) string { return strings.ToUpper(strings.ReplaceAll(flag, "-", "_")) }

// checkSecrets refuses secrets that are set to nothing, as flags or in the environment.
func checkSecrets(f *pflag.FlagSet) error {
	for _, name := range secretFlags {
		flag := f.Lookup(name)
		if flag == nil {
			continue
		}
		value, given := os.LookupEnv("BACKUPD_" + envName(name))
		if flag.Changed {
			value, given = flag.Value.String(), true
		}
		if given && strings.Trim(value, "[]\" \t\r\n,") == "" {
			return fmt.Errorf("%w: --%s (or BACKUPD_%s) is set and empty: give the secret, or unset it for an unencrypted repository", snapshot.ErrUsage, name, envName(name))
		}
	}
	return nil
}
