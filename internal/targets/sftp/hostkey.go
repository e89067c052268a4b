package sftp

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/disko/backupd/internal/store"
)

// hostKeys is how a server proves who it is: what keys are believed, and which
// algorithms to ask it for, so that it shows one of those.
type hostKeys struct {
	check      ssh.HostKeyCallback
	algorithms []string // nil: any
}

func (o Options) hostKeys() (hostKeys, error) {
	if o.HostKey != "" {
		return o.pinned()
	}
	return o.knownHosts()
}

func pinnedKey(line string) (ssh.PublicKey, error) {
	key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("sftp target: the pinned host key cannot be read; it is one line like \"ssh-ed25519 AAAA...\", as ssh-keyscan prints after the host's name")
	}
	return key, nil
}

func (o Options) pinned() (hostKeys, error) {
	want, err := pinnedKey(o.HostKey)
	if err != nil {
		return hostKeys{}, err
	}
	return hostKeys{
		algorithms: algorithmsOf(want.Type()),
		check: func(_ string, _ net.Addr, got ssh.PublicKey) error {
			if bytes.Equal(want.Marshal(), got.Marshal()) {
				return nil
			}
			return fmt.Errorf("ALARM: %s shows the host key %s %s, and not the pinned one, %s; somebody may be between you and the server. Do not go on unless its owner confirms the new key; then pin that",
				o.address(), got.Type(), ssh.FingerprintSHA256(got), ssh.FingerprintSHA256(want))
		},
	}, nil
}

func (o Options) knownHosts() (hostKeys, error) {
	file := o.KnownHostsFile
	if file == "" {
		home, err := os.UserHomeDir()
		if err == nil {
			file = filepath.Join(home, ".ssh", "known_hosts")
		}
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) && o.KnownHostsFile == "" {
		text, err = nil, nil // it knows nobody, and says so when a key is shown
	}
	if err != nil {
		return hostKeys{}, fmt.Errorf("read the known hosts of an sftp target: %w", err)
	}
	var known ssh.HostKeyCallback
	if text != nil {
		if known, err = knownhosts.New(file); err != nil {
			return hostKeys{}, fmt.Errorf("read the known hosts of an sftp target: %w", err)
		}
	} else if known, err = knownhosts.New(); err != nil {
		return hostKeys{}, err
	}
	k := hostKeys{check: func(host string, remote net.Addr, key ssh.PublicKey) error {
		return o.judge(known(host, remote, key), key, file)
	}}
	if !bytes.Contains(text, []byte("@cert-authority")) {
		k.algorithms = knownAlgorithms(known, o.address())
	}
	return k, nil
}

// judge turns what known_hosts says of a key into sentences.
func (o Options) judge(err error, key ssh.PublicKey, file string) error {
	line := knownhosts.Line([]string{o.address()}, key)
	var revoked *knownhosts.RevokedError
	if errors.As(err, &revoked) {
		return fmt.Errorf("ALARM: %s shows the host key %s, which %s has revoked", o.address(), ssh.FingerprintSHA256(key), file)
	}
	var ke *knownhosts.KeyError
	if !errors.As(err, &ke) {
		return err
	}
	if len(ke.Want) == 0 {
		return fmt.Errorf("the server %s is not known: its host key is %s %s. Ask its owner whether that is right; if it is, add this line to %s:\n%s\nor name the key: ?host-key=%s",
			o.address(), key.Type(), ssh.FingerprintSHA256(key), file, line, url.PathEscape(keyText(key)))
	}
	var places []string
	for _, w := range ke.Want {
		places = append(places, fmt.Sprintf("%s line %d (%s)", w.Filename, w.Line, ssh.FingerprintSHA256(w.Key)))
	}
	return fmt.Errorf("ALARM: the host key of %s has changed to %s %s; it was %s. Somebody may be between you and the server. Do not go on unless its owner confirms the new key; then replace the old line by:\n%s",
		o.address(), key.Type(), ssh.FingerprintSHA256(key), strings.Join(places, ", "), line)
}

func keyText(key ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

// knownAlgorithms are those of the keys that are known of a host. Without
// asking for them a server shows its favourite key, which may not be the known
// one: an alarm for nothing.
func knownAlgorithms(known ssh.HostKeyCallback, address string) []string {
	nobodys, err := ssh.NewPublicKey(ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)))
	if err != nil {
		return nil
	}
	var ke *knownhosts.KeyError
	if !errors.As(known(address, &net.TCPAddr{IP: net.IPv4zero}, nobodys), &ke) {
		return nil
	}
	var all []string
	for _, w := range ke.Want {
		for _, a := range algorithmsOf(w.Key.Type()) {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	return all
}

func algorithmsOf(keyType string) []string {
	if keyType == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256}
	}
	return []string{keyType}
}

// hostKeyError is permanent: trying again shows the same key.
func hostKeyError(err error) error { return fmt.Errorf("%w: %w", store.ErrAccess, err) }
