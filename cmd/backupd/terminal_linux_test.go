package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/disko/backupd/internal/teststack"
)

// terminal is a pseudo terminal: the program has one end, and the test types and
// reads at the other.
type terminal struct {
	t            *testing.T
	keys, tty    *os.File
	mu           sync.Mutex
	text         strings.Builder
	readToTheEnd chan struct{}
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	keys := os.NewFile(uintptr(fd), "/dev/ptmx")
	t.Cleanup(func() { keys.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, keys: keys, tty: tty, readToTheEnd: make(chan struct{})}
	go func() {
		defer close(term.readToTheEnd)
		_, _ = io.Copy(term, keys) // ends with an error when the other end is closed
	}()
	t.Cleanup(func() {
		tty.Close()
		<-term.readToTheEnd
	})
	return term
}

// Write gets what appears on the terminal.
func (term *terminal) Write(p []byte) (int, error) {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.Write(p)
}

// shown is all that appeared so far.
func (term *terminal) shown() string {
	term.mu.Lock()
	defer term.mu.Unlock()
	return term.text.String()
}

func (term *terminal) press(keys string) {
	term.t.Helper()
	if _, err := term.keys.WriteString(keys); err != nil {
		term.t.Fatal(err)
	}
}

// modes are the terminal's: whether it echoes, what Ctrl-C does, ...
func (term *terminal) modes() unix.Termios {
	term.t.Helper()
	m, err := unix.IoctlGetTermios(int(term.tty.Fd()), unix.TCGETS)
	if err != nil {
		term.t.Fatal(err)
	}
	return *m
}

func (term *terminal) resize(width, height uint16) {
	term.t.Helper()
	if err := unix.IoctlSetWinsize(int(term.keys.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		term.t.Fatal(err)
	}
}

// start runs a program at the terminal, as a shell does; ended gets its exit code.
func (term *terminal) start(dir string, env []string, args ...string) (ended <-chan int) {
	term.t.Helper()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.tty, term.tty, term.tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		term.t.Fatal(err)
	}
	code, gone := make(chan int, 1), make(chan struct{})
	go func() {
		defer close(gone)
		_ = cmd.Wait() // the code says it
		code <- cmd.ProcessState.ExitCode()
	}()
	term.t.Cleanup(func() {
		_ = cmd.Process.Kill() // one that has ended needs none
		<-gone
	})
	return code
}

func TestWhatIsPrintedStandsAboveTheLineThatIsRedrawn(t *testing.T) {
	term := newTerminal(t)
	term.resize(20, 5)
	w := onScreen(term.tty)
	s, ok := w.(*screen)
	if !ok {
		t.Fatalf("a terminal is a %T", w)
	}
	fmt.Fprintln(w, "before")
	s.redraw("half of it")
	fmt.Fprintln(w, "warning")
	s.redraw("most of it, and more than a line has")
	fmt.Fprintln(w, "notice")
	s.redraw("")
	fmt.Fprintln(w, "after")
	want := "before\r\n" + takeBack + "half of it" + takeBack + "warning\r\nhalf of it" +
		takeBack + "most of it, and mor" + takeBack + "notice\r\nmost of it, and mor" + takeBack + "after\r\n"
	teststack.Eventually(t, patience, "all is shown", func() (bool, string) { return term.shown() == want, fmt.Sprintf("%q", term.shown()) })

	if file, err := os.Create(filepath.Join(t.TempDir(), "log")); err != nil || onScreen(file) != io.Writer(file) {
		t.Errorf("a file is a screen, %v", err)
	}
}
