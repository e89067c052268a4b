package sftp

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/disko/backupd/internal/store"
	"github.com/disko/backupd/internal/testservers"
)

// wantRefused opens a target and wants a permanent error that says all of these.
func wantRefused(t *testing.T, o Options, kind error, says ...string) error {
	t.Helper()
	target, err := Open(context.Background(), o)
	if err == nil {
		target.Close()
		t.Fatalf("opened, want an error with %q", says)
	}
	if !errors.Is(err, kind) {
		t.Errorf("%v, want %v", err, kind)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%v\ndoes not say %q", err, s)
		}
	}
	return err
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAnUnknownServerIsRefusedWithTheLineThatAcceptsIt(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	o.KnownHostsFile = writeFile(t, "")
	err := wantRefused(t, o, store.ErrAccess, "SHA256:", o.KnownHostsFile, "host-key=")
	pin := err.Error()[strings.Index(err.Error(), "?"):]
	if !learn(t, o, err) {
		t.Fatalf("no line in %v", err)
	}
	open(t, o)

	o.KnownHostsFile = filepath.Join(t.TempDir(), "none")
	wantRefused(t, o, store.ErrAccess, "known hosts", o.KnownHostsFile)

	// The pin as it was printed, in a name.
	o.KnownHostsFile = ""
	name := "sftp://" + o.User + "@" + o.address() + o.Path + pin
	parsed, perr := Parse(name, Options{IdentityFiles: o.IdentityFiles})
	if perr != nil {
		t.Fatal(perr)
	}
	t.Setenv("HOME", t.TempDir())
	open(t, parsed)
	parsed.HostKey = ""
	wantRefused(t, parsed, store.ErrAccess, "is not known", filepath.Join(os.Getenv("HOME"), ".ssh/known_hosts"))
}

func TestAServerWhoseKeyChangedIsAnAlarm(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	pinned := o
	pinned.HostKey = s.HostKey(t, "ed25519")
	open(t, o)
	open(t, pinned)
	s.NewHostKeys(t)
	s.Restart(t)
	wantRefused(t, o, store.ErrAccess, "ALARM", "has changed", "SHA256:", o.KnownHostsFile)
	wantRefused(t, pinned, store.ErrAccess, "ALARM", "pinned", "SHA256:")
	s.LearnHostKeys(t)
	open(t, o)
}

// A server shows the key that it is asked for; its favourite may be another.
func TestAnyKnownKeyOfAServerIsEnough(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	for _, kind := range []string{"ed25519", "ecdsa"} {
		o := options(t, s)
		o.KnownHostsFile = writeFile(t, "["+s.Host+"]:"+strings.TrimPrefix(s.Address(), s.Host+":")+" "+s.HostKey(t, kind)+"\n")
		open(t, o)
		o.HostKey = s.HostKey(t, kind)
		open(t, o)
	}
}

func TestEncryptedIdentitiesNeedTheirPassphrase(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	key := s.KeyPair(t, "locked", "ed25519", "open sesame")
	pub, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.Dir, "authorized_keys"), pub, 0o600); err != nil {
		t.Fatal(err)
	}
	o.IdentityFiles = []string{key}
	wantRefused(t, o, store.ErrAccess, key, "encrypted", "identity-passphrase-file")
	o.IdentityPassphraseFile = writeFile(t, "open sesame\n")
	open(t, o)
	wrong := writeFile(t, "close sesame\n")
	o.IdentityPassphraseFile = wrong
	if err := wantRefused(t, o, store.ErrAccess, key, wrong); strings.Contains(err.Error(), "sesame") {
		t.Errorf("%v tells the passphrase", err)
	}
}

func TestTheAgentsKeysAreOffered(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	socket := filepath.Join(t.TempDir(), "agent")
	agent := exec.Command("ssh-agent", "-D", "-a", socket)
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		agent.Process.Kill()
		agent.Wait()
	})
	waitFor(t, "ssh-agent", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	key := o.IdentityFiles[0]
	o.IdentityFiles = nil
	t.Setenv("HOME", t.TempDir())
	t.Setenv("SSH_AUTH_SOCK", socket)
	wantRefused(t, o, store.ErrAccess, "the agent (0 keys)", o.User)
	add := exec.Command("ssh-add", "-q", key)
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("ssh-add: %v %s", err, out)
	}
	open(t, o)
}

func TestTheUsualIdentityFilesAreTried(t *testing.T) {
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("SSH_AUTH_SOCK", "")
	key, err := os.ReadFile(o.IdentityFiles[0])
	if err != nil {
		t.Fatal(err)
	}
	o.IdentityFiles = nil
	wantRefused(t, o, store.ErrAccess, "nothing to log in with")
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".ssh/id_ed25519"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, o)
}

func TestRefusedLoginsNameWhatWasTried(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	o := options(t, s)
	o.IdentityFiles = []string{s.KeyPair(t, "stranger", "ed25519", "")}
	wantRefused(t, o, store.ErrAccess, "identity file "+o.IdentityFiles[0], "as "+o.User)
	o.PasswordFile = writeFile(t, "secret-password")
	if err := wantRefused(t, o, store.ErrAccess, o.PasswordFile); strings.Contains(err.Error(), "secret-password") {
		t.Errorf("%v tells the password", err)
	}
}

func TestNamedSecretsThatCannotBeReadAreErrors(t *testing.T) {
	t.Parallel()
	s := testservers.StartSSHD(t, testservers.SSHDOptions{})
	good := options(t, s)
	none := filepath.Join(t.TempDir(), "none")
	for what, spoil := range map[string]func(*Options){
		"identity":   func(o *Options) { o.IdentityFiles = append(o.IdentityFiles, none) },
		"password":   func(o *Options) { o.PasswordFile = none },
		"no content": func(o *Options) { o.PasswordFile = writeFile(t, "\n") },
		"no key":     func(o *Options) { o.IdentityFiles = append(o.IdentityFiles, writeFile(t, "not a key")) },
	} {
		o := good
		spoil(&o)
		t.Run(what, func(t *testing.T) { wantRefused(t, o, store.ErrAccess) })
	}
}

func TestWrongPasswordsAreRefused(t *testing.T) {
	t.Parallel()
	o, _ := rcloneSFTP(t)
	open(t, o)
	o.PasswordFile = writeFile(t, "wrong")
	wantRefused(t, o, store.ErrAccess, o.PasswordFile)
}

func TestServersThatCannotBeReachedAreSaid(t *testing.T) {
	addr, err := testservers.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	o, err := Parse("sftp://me@"+addr+"/x", Options{HostKey: "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGfT4S3lXJVrJ+0TYaCTtW5JBsCmiZqSBGLOyDNhGhZm", PasswordFile: writeFile(t, "x"), StallTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), o)
	wantTransient(t, err, "connection refused")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // the kernel takes connections; nobody says a word
	o.Port = l.Addr().(*net.TCPAddr).Port
	begin := time.Now()
	_, err = Open(context.Background(), o)
	wantTransient(t, err, "did not answer")
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("took %s", d)
	}

	o.Host = "no-such-host.invalid"
	if _, err = Open(context.Background(), o); err == nil || !strings.Contains(err.Error(), "no-such-host.invalid") {
		t.Errorf("%v", err)
	}
}

// wantTransient wants an error that a retry may mend, so without a sentinel.
func wantTransient(t *testing.T, err error, says string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("%v does not say %q", err, says)
	}
	for _, s := range []error{store.ErrNotExist, store.ErrExist, store.ErrNoTarget, store.ErrNoSpace, store.ErrAccess, store.ErrShort} {
		if errors.Is(err, s) {
			t.Errorf("%v is permanent: %v", err, s)
		}
	}
}
