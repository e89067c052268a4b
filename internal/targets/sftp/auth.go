package sftp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/disko/backupd/internal/store"
)

// credentials is what there is to log in with, for one handshake.
type credentials struct {
	methods []ssh.AuthMethod
	tried   []string // for the sentence when all is refused
	agent   net.Conn // kept until the handshake is over
}

func (c *credentials) close() {
	if c.agent != nil {
		_ = c.agent.Close() // it was asked for signatures only
	}
}

// credentials gathers keys and the password. What was named and cannot be read
// is an error, never passed over.
func (o Options) credentials(ctx context.Context) (*credentials, error) {
	c := &credentials{}
	var signers []ssh.Signer
	if len(o.IdentityFiles) > 0 {
		for _, file := range o.IdentityFiles {
			s, err := o.identity(file)
			if err != nil {
				return nil, err
			}
			signers = append(signers, s)
			c.tried = append(c.tried, "identity file "+file)
		}
	} else {
		signers = append(signers, c.fromAgent(ctx)...)
		signers = append(signers, c.usualFiles()...)
	}
	if len(signers) > 0 {
		c.methods = append(c.methods, ssh.PublicKeys(signers...))
	}
	if o.PasswordFile != "" {
		password, err := secret("the password", o.PasswordFile)
		if err != nil {
			c.close()
			return nil, err
		}
		c.methods = append(c.methods, ssh.Password(password), ssh.KeyboardInteractive(answer(password)))
		c.tried = append(c.tried, "the password in "+o.PasswordFile)
	}
	return c, nil
}

// identity reads a private key that was named.
func (o Options) identity(file string) (ssh.Signer, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: read the identity file of an sftp target: %w", store.ErrAccess, err)
	}
	s, err := ssh.ParsePrivateKey(pem)
	var locked *ssh.PassphraseMissingError
	if errors.As(err, &locked) {
		if o.IdentityPassphraseFile == "" {
			return nil, fmt.Errorf("%w: identity file %s is encrypted; put its passphrase in a file and name that as identity-passphrase-file, or use a key without one", store.ErrAccess, file)
		}
		phrase, serr := secret("the passphrase of the identity file", o.IdentityPassphraseFile)
		if serr != nil {
			return nil, serr
		}
		s, err = ssh.ParsePrivateKeyWithPassphrase(pem, []byte(phrase))
		if err != nil {
			return nil, fmt.Errorf("%w: identity file %s does not open with the passphrase in %s", store.ErrAccess, file, o.IdentityPassphraseFile)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: identity file %s is not a private key in a form that is known here", store.ErrAccess, file)
	}
	return s, nil
}

// secret reads a file that holds one; a line break at its end is an editor's.
func secret(what, file string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%w: read %s of an sftp target: %w", store.ErrAccess, what, err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return "", fmt.Errorf("%w: read %s of an sftp target: %s is empty", store.ErrAccess, what, file)
	}
	return s, nil
}

// fromAgent asks the agent for its keys. One that is not there is no error: it
// was not asked for.
func (c *credentials) fromAgent(ctx context.Context) []ssh.Signer {
	socket := os.Getenv("SSH_AUTH_SOCK")
	if socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		c.tried = append(c.tried, "the agent (does not answer)")
		return nil
	}
	c.agent = conn
	if end, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(end) // a socket takes deadlines
	}
	signers, err := agent.NewClient(conn).Signers()
	if err != nil {
		c.tried = append(c.tried, "the agent (does not answer)")
		return nil
	}
	c.tried = append(c.tried, fmt.Sprintf("the agent (%d keys)", len(signers)))
	return signers
}

// usualFiles are the keys that ssh would try unasked.
func (c *credentials) usualFiles() []ssh.Signer {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	var signers []ssh.Signer
	for _, name := range []string{"id_ed25519", "id_ecdsa", "id_rsa"} {
		file := filepath.Join(home, ".ssh", name)
		pem, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		s, err := ssh.ParsePrivateKey(pem)
		if err != nil {
			c.tried = append(c.tried, file+" (encrypted, or unknown)")
			continue
		}
		c.tried = append(c.tried, file)
		signers = append(signers, s)
	}
	return signers
}

// answer gives the password where a server asks for it as a question.
func answer(password string) ssh.KeyboardInteractiveChallenge {
	return func(_, _ string, questions []string, echos []bool) ([]string, error) {
		answers := make([]string, len(questions))
		for i, echo := range echos {
			if echo {
				return nil, errors.New("the server asks for more than a password")
			}
			answers[i] = password
		}
		return answers, nil
	}
}

// refused is the sentence when a server took none of what there is.
func (c *credentials) refused(o Options) error {
	what := "there was nothing to log in with: no agent (SSH_AUTH_SOCK), no key in ~/.ssh, no identity file, no password file"
	if len(c.tried) > 0 {
		what = "it refused " + strings.Join(c.tried, ", ")
	}
	return fmt.Errorf("%w: log in to %s as %s: %s; check the user's name and that the server has the public key", store.ErrAccess, o.address(), o.User, what)
}
