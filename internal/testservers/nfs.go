package testservers

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// NFS is an NFS server of this test alone: nfs-ganesha, version 3 over TCP,
// exporting directories of a local file system.
type NFS struct {
	Host            string // 127.0.0.1
	Port, MountPort int
	Export          string // what a client names: /export
	Dir             string // the exported directory as a path of this machine

	dir   string // its configuration, log and state
	o     NFSOptions
	cmd   *exec.Cmd
	ended chan struct{}
}

// NFSOptions bend the server.
type NFSOptions struct {
	// Dir is exported; a new temporary directory if it is empty. Its file system
	// must know handles: ext4, XFS and tmpfs do, overlayfs may not.
	Dir string
	// RootSquash has the server take root for nobody.
	RootSquash bool
	// ReadOnly refuses writing.
	ReadOnly bool
	// Clients may mount it; everybody if it is empty.
	Clients string
	// Security is none, sys, krb5...; sys if it is empty.
	Security string
	// Refused are further exports, by the path that a client names, that nobody
	// may mount.
	Refused map[string]string
}

const (
	nfsProgramNumber   = 100003
	mountProgramNumber = 100005
)

// Ganesha starts an NFS server, and ends it with the test.
func Ganesha(t testing.TB, o NFSOptions) *NFS {
	t.Helper()
	nfsNeeds(t)
	s := &NFS{Host: "127.0.0.1", Export: "/export", Dir: o.Dir, dir: t.TempDir(), o: o}
	if s.Dir == "" {
		s.Dir = filepath.Join(s.dir, "export")
		if err := os.Mkdir(s.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { s.Kill(t) })
	// Another process may take a free port, or end the rpcbind, before the
	// server is there.
	var err error
	for range 3 {
		if err = s.choosePorts(); err != nil {
			break
		}
		if err = s.start(t); !errors.Is(err, errEnded) {
			break
		}
	}
	if err != nil {
		t.Fatalf("start ganesha.nfsd: %v\n%s", err, s.log())
	}
	return s
}

// nfsNeeds skips or fails the test where the machine lacks something.
func nfsNeeds(t testing.TB) {
	t.Helper()
	lack := ""
	if _, err := nfsProgram("ganesha.nfsd"); err != nil {
		lack = "ganesha.nfsd is missing; apt-get install nfs-ganesha nfs-ganesha-vfs"
	} else if _, err := nfsProgram("rpcbind"); err != nil {
		lack = "rpcbind is missing; apt-get install rpcbind"
	} else if os.Getuid() != 0 {
		lack = "only root can start ganesha.nfsd: it opens files by their handles"
	}
	if lack == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal(lack)
	}
	t.Skip(lack)
}

// nfsProgram also looks where a user's PATH does not.
func nfsProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return exec.LookPath("/usr/sbin/" + name)
}

func (s *NFS) choosePorts() error {
	for _, p := range []*int{&s.Port, &s.MountPort} {
		addr, err := FreeAddress()
		if err != nil {
			return err
		}
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return err
		}
		if *p, err = strconv.Atoi(port); err != nil {
			return err
		}
	}
	return nil
}

// config is for ganesha 4. Attributes are not cached, because tests change
// files behind its back; NLM would want a statd, and UDP more free ports.
func (s *NFS) config() string {
	squash, access, security := "No_Root_Squash", "RW", "sys"
	if s.o.RootSquash {
		squash = "Root_Squash"
	}
	if s.o.ReadOnly {
		access = "RO"
	}
	if s.o.Security != "" {
		security = s.o.Security
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `NFS_CORE_PARAM {
	Bind_addr = 127.0.0.1;
	NFS_Port = %d;
	MNT_Port = %d;
	Protocols = 3;
	mount_path_pseudo = true;
	Enable_NLM = false;
	Enable_RQUOTA = false;
	Enable_UDP = false;
	fsid_device = true;
}
NFSV4 {
	Graceless = true;
	RecoveryRoot = "%s";
}
LOG { Default_Log_Level = EVENT; }
`, s.Port, s.MountPort, filepath.Join(s.dir, "recovery"))
	export := func(id int, name, dir, clients string) {
		fmt.Fprintf(&b, `EXPORT {
	Export_Id = %d;
	Path = "%s";
	Pseudo = "%s";
	Protocols = 3;
	Transports = TCP;
	SecType = %s;
	Squash = %s;
	Attr_Expiration_Time = 0;
	FSAL { Name = VFS; }
`, id, dir, name, security, squash)
		if clients == "" {
			fmt.Fprintf(&b, "\tAccess_Type = %s;\n}\n", access)
		} else {
			fmt.Fprintf(&b, "\tAccess_Type = None;\n\tCLIENT { Clients = %s; Access_Type = %s; Squash = %s; }\n}\n", clients, access, squash)
		}
	}
	export(1, s.Export, s.Dir, s.o.Clients)
	id := 1
	for name, dir := range s.o.Refused {
		id++
		export(id, name, dir, "192.0.2.1") // TEST-NET-1: no machine has it
	}
	return b.String()
}

// start returns when both services answer.
func (s *NFS) start(t testing.TB) error {
	t.Helper()
	if err := startRPCBind(t); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "recovery"), 0o700); err != nil {
		return err
	}
	conf := filepath.Join(s.dir, "ganesha.conf")
	if err := os.WriteFile(conf, []byte(s.config()), 0o600); err != nil {
		return err
	}
	program, err := nfsProgram("ganesha.nfsd")
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "-F", "-f", conf, "-p", filepath.Join(s.dir, "pid"), "-L", s.logName())
	cmd.Dir = s.dir
	if s.ended, err = spawn(cmd); err != nil {
		return err
	}
	s.cmd = cmd
	deadline := time.Now().Add(startTimeout)
	for {
		err := nfsAnswers(s.Host, s.Port, nfsProgramNumber, 3)
		if err == nil {
			err = nfsAnswers(s.Host, s.MountPort, mountProgramNumber, 3)
		}
		if err == nil {
			return nil
		}
		select {
		case <-s.ended:
			return errEnded
		case <-time.After(askEvery):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no answer in %v: %w", startTimeout, err)
		}
	}
}

func (s *NFS) logName() string { return filepath.Join(s.dir, "log") }

func (s *NFS) log() string {
	b, err := os.ReadFile(s.logName())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// URL is the target's name of a directory below the export; settings included.
func (s *NFS) URL(below string) string {
	return fmt.Sprintf("nfs://%s:%d%s%s?mountport=%d", s.Host, s.Port, s.Export, below, s.MountPort)
}

// LibnfsURL is the same for libnfs, whose nfs-ls and nfs-cp are a second opinion.
func (s *NFS) LibnfsURL(below string) string {
	return fmt.Sprintf("nfs://%s%s%s?version=3&nfsport=%d&mountport=%d", s.Host, s.Export, below, s.Port, s.MountPort)
}

// Pause makes the server stand still (SIGSTOP), and returns when it does:
// connections stay open, and nothing answers. Resume lets it go on.
func (s *NFS) Pause(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatalf("pause ganesha.nfsd: %v", err)
	}
	deadline := time.Now().Add(startTimeout)
	for !nfsStopped(t, s.cmd.Process.Pid) {
		if time.Now().After(deadline) {
			t.Fatal("ganesha.nfsd does not stop")
		}
		time.Sleep(askEvery)
	}
}

// nfsStopped says that every thread of a process has stopped.
func nfsStopped(t testing.TB, pid int) bool {
	t.Helper()
	stats, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // it has ended
		}
		// pid (comm) state: comm may hold anything.
		if state := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))[0]; state != "T" {
			return false
		}
	}
	return true
}

// Resume lets a paused server go on.
func (s *NFS) Resume(t testing.TB) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Errorf("resume ganesha.nfsd: %v", err)
	}
}

// Kill ends the server with SIGKILL and waits until it is gone.
func (s *NFS) Kill(t testing.TB) {
	t.Helper()
	if s.cmd == nil || s.cmd.Process == nil {
		return
	}
	select {
	case <-s.ended:
		return
	default:
	}
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("kill ganesha.nfsd: %v", err)
	}
	<-s.ended
}

// Restart kills the server and starts it again at the same ports; it returns
// when it answers.
func (s *NFS) Restart(t testing.TB) {
	t.Helper()
	s.Kill(t)
	if err := s.start(t); err != nil {
		t.Fatalf("restart ganesha.nfsd: %v\n%s", err, s.log())
	}
}
