package testservers

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	startTimeout = 90 * time.Second
	askEvery     = 20 * time.Millisecond
)

// errEnded: the server ended before it answered.
var errEnded = errors.New("it ended before it answered")

// process is a server's process. Its address is chosen at the first start and kept.
type process struct {
	name  string
	dir   string // of its data and its log
	args  func(addr string) []string
	env   []string
	ready func() error // asks the server

	addr  string // host:port
	mu    sync.Mutex
	cmd   *exec.Cmd
	ended chan struct{} // closed when cmd was waited for
}

// start returns when the server answers.
func (p *process) start() error {
	if p.addr == "" {
		addr, err := FreeAddress()
		if err != nil {
			return err
		}
		p.addr = addr
	}
	root, err := repositoryRoot()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(p.logName(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(root, binaries, p.name), p.args(p.addr)...)
	cmd.Dir = p.dir
	cmd.Env = append([]string{"HOME=" + p.dir, "PATH=" + os.Getenv("PATH")}, p.env...)
	cmd.Stdout, cmd.Stderr = log, log
	ended, err := spawn(cmd)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.cmd, p.ended = cmd, ended
	p.mu.Unlock()

	deadline := time.Now().Add(startTimeout)
	for {
		err := p.ready()
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errEnded
		case <-time.After(askEvery):
		}
		if time.Now().After(deadline) {
			p.kill()
			return fmt.Errorf("no answer in %v: %w", startTimeout, err)
		}
	}
}

// spawn starts a command that is killed when this process dies. The kernel
// takes the death of the thread that started it for that, so the thread is
// kept until the command has ended.
func spawn(cmd *exec.Cmd) (ended chan struct{}, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	ended = make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
		}
	}()
	return ended, <-started
}

func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd == nil {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// pause returns when every thread stands still: the signal is one thread's to
// take, and on a busy machine the others serve on until it gets its turn.
func (p *process) pause() error {
	if err := p.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(time.Millisecond) {
		stopped, err := stopped(p.cmd.Process.Pid)
		if err != nil || stopped {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("it did not stop in %v", startTimeout)
		}
	}
}

// stopped looks at the state of a process's threads.
func stopped(pid int) (bool, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err != nil {
		return false, err
	}
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			return false, err
		}
		// "pid (name) state ...", and a name may have brackets.
		_, state, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')'):]), " ")
		if !strings.HasPrefix(state, "T") {
			return false, nil
		}
	}
	return len(files) > 0, nil
}

func (p *process) resume() error { return p.signal(syscall.SIGCONT) }

// kill returns when the process is gone, also when it was.
func (p *process) kill() {
	if p.signal(syscall.SIGKILL) == nil || p.ended != nil {
		<-p.ended
	}
}

func (p *process) logName() string { return filepath.Join(p.dir, p.name+".log") }

// log is the end of what the server printed.
func (p *process) log() string {
	b, err := os.ReadFile(p.logName())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}

// FreeAddress returns an address of 127.0.0.1 whose port was free just now.
func FreeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// tempDirOfProcess makes a directory that goes when this process does, also
// when it is killed: a shell waits for the end of a pipe that only we hold.
func tempDirOfProcess() (string, error) {
	dir, err := os.MkdirTemp("", "backupd-testservers-")
	if err != nil {
		return "", err
	}
	// Servers die at the same moment, and may write until they do.
	reaper := exec.Command("sh", "-c", `cat; until rm -rf "$1"; do sleep 1; done`, "sh", dir)
	reaper.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is not for it
	if _, err := reaper.StdinPipe(); err != nil {
		return "", err
	}
	if err := reaper.Start(); err != nil {
		return "", err
	}
	// This holds the pipe as well, which would be closed with the garbage.
	go func() { _ = reaper.Wait() }()
	return dir, nil
}
