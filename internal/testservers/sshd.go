package testservers

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// SSHD is an OpenSSH server of this test alone, with internal-sftp and nothing
// else. Who logs in is the user that runs the test, by IdentityFile.
type SSHD struct {
	Host string // 127.0.0.1
	Port int
	User string
	Dir  string // its files, of mode 0700

	IdentityFile   string // the private key that is let in
	KnownHostsFile string // has the server's keys

	cmd   *exec.Cmd
	ended chan struct{}
}

// SSHDOptions bend the server.
type SSHDOptions struct {
	// SFTP are arguments of internal-sftp: -R is read-only, "-P hardlink,fsync"
	// takes requests away, and extensions with them.
	SFTP string
	// Config are more lines of sshd_config.
	Config string
}

// StartSSHD starts a server, and ends it with the test.
func StartSSHD(t testing.TB, o SSHDOptions) *SSHD {
	t.Helper()
	for _, program := range []string{"sshd", "ssh-keygen"} {
		if _, err := sshdProgram(program); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing; apt-get install openssh-server openssh-client", program)
		}
		t.Skipf("%s is missing; apt-get install openssh-server openssh-client", program)
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if u.Uid == "0" {
		// The jail of sshd's child that has no privileges.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	addr, err := FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &SSHD{Host: host, User: u.Username, Dir: t.TempDir()}
	if s.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	s.IdentityFile = s.KeyPair(t, "client", "ed25519", "")
	s.KnownHostsFile = filepath.Join(s.Dir, "known_hosts")
	s.write(t, "authorized_keys", s.read(t, "client.pub"))
	s.NewHostKeys(t)
	s.LearnHostKeys(t)
	s.write(t, "sshd_config", fmt.Sprintf(`ListenAddress %s
HostKey %s/host_ed25519
HostKey %s/host_ecdsa
AuthorizedKeysFile %s/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
MaxStartups 100
Subsystem sftp internal-sftp %s
%s
`, addr, s.Dir, s.Dir, s.Dir, o.SFTP, o.Config))
	s.start(t)
	t.Cleanup(func() { s.Kill(t) })
	return s
}

// sshdProgram also looks where a user's PATH does not.
func sshdProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

// KeyPair makes a key pair and returns the private key's file; the public one
// has .pub appended.
func (s *SSHD) KeyPair(t testing.TB, name, kind, passphrase string) string {
	t.Helper()
	file := filepath.Join(s.Dir, name)
	os.Remove(file)
	if out, err := exec.Command("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	return file
}

// NewHostKeys gives the server new keys, which it shows after a Restart.
func (s *SSHD) NewHostKeys(t testing.TB) {
	t.Helper()
	for _, kind := range []string{"ed25519", "ecdsa"} {
		s.KeyPair(t, "host_"+kind, kind, "")
	}
}

// LearnHostKeys writes KnownHostsFile.
func (s *SSHD) LearnHostKeys(t testing.TB) {
	t.Helper()
	var b bytes.Buffer
	for _, kind := range []string{"ed25519", "ecdsa"} {
		fmt.Fprintf(&b, "[%s]:%d %s\n", s.Host, s.Port, s.HostKey(t, kind))
	}
	s.write(t, "known_hosts", b.String())
}

// HostKey is the server's public key of a kind, "ssh-ed25519 AAAA...".
func (s *SSHD) HostKey(t testing.TB, kind string) string {
	t.Helper()
	fields := strings.Fields(s.read(t, "host_"+kind+".pub"))
	return fields[0] + " " + fields[1]
}

func (s *SSHD) read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (s *SSHD) write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Address is host:port.
func (s *SSHD) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

func (s *SSHD) start(t testing.TB) {
	t.Helper()
	program, err := sshdProgram("sshd")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "-D", "-e", "-f", filepath.Join(s.Dir, "sshd_config"))
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := spawn(cmd)
	if err != nil {
		t.Fatal(err)
	}
	s.cmd, s.ended = cmd, ended
	deadline := time.Now().Add(startTimeout)
	for !s.answers() {
		select {
		case <-ended:
			t.Fatalf("sshd ended before it answered:\n%s", s.read(t, "log"))
		case <-time.After(askEvery):
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not answer:\n%s", s.read(t, "log"))
		}
	}
}

// answers asks for the banner.
func (s *SSHD) answers() bool {
	conn, err := net.DialTimeout("tcp", s.Address(), 2*time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(2 * time.Second))
	b := make([]byte, 4)
	_, err = conn.Read(b)
	return err == nil && string(b) == "SSH-"
}

// Pause makes the server and its sessions stand still.
func (s *SSHD) Pause(t testing.TB) { s.signal(t, syscall.SIGSTOP) }

// Resume lets them go on.
func (s *SSHD) Resume(t testing.TB) { s.signal(t, syscall.SIGCONT) }

// KillSessions cuts every connection; the server goes on.
func (s *SSHD) KillSessions(t testing.TB) {
	t.Helper()
	for _, pid := range sshdChildren(t, s.cmd.Process.Pid) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
}

// Kill ends the server and its sessions at once.
func (s *SSHD) Kill(t testing.TB) {
	t.Helper()
	select {
	case <-s.ended:
		return
	default:
	}
	s.signal(t, syscall.SIGKILL)
	<-s.ended
}

// Restart kills the server and starts it again at the same address.
func (s *SSHD) Restart(t testing.TB) {
	t.Helper()
	s.Kill(t)
	s.start(t)
}

// signal reaches the sessions too: each is a process group of its own.
func (s *SSHD) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	pid := s.cmd.Process.Pid
	children := sshdChildren(t, pid)
	if err := syscall.Kill(pid, sig); err != nil {
		t.Errorf("signal sshd: %v", err)
	}
	for _, child := range append(children, sshdChildren(t, pid)...) {
		_ = syscall.Kill(child, sig) // it may have ended
	}
}

// sshdChildren are all processes below one.
func sshdChildren(t testing.TB, pid int) (all []int) {
	t.Helper()
	parents := map[int][]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state ppid: comm may hold anything.
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			t.Fatal(err)
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err != nil {
			t.Fatal(err)
		}
		parents[parent] = append(parents[parent], child)
	}
	for todo := []int{pid}; len(todo) > 0; todo = todo[1:] {
		all = append(all, parents[todo[0]]...)
		todo = append(todo, parents[todo[0]]...)
	}
	return all
}
