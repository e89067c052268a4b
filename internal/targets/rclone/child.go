package rclone

import (
	"bufio"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// goodbye is how long rclone may tidy up after it was told to end.
const goodbye = 5 * time.Second

// child is a running `rclone rcd`, which is rclone's control interface over
// HTTP. It listens on a port of 127.0.0.1 that the kernel chose, and lets in
// nobody who does not know the password, which is new for each.
type child struct {
	cmd            *exec.Cmd
	base           string // http://127.0.0.1:port/
	user, password string
	http           *http.Client
	printed        *printed
	ended          chan struct{} // closed when the process was waited for
}

// serving is what rclone prints when it is ready, in every version.
var serving = regexp.MustCompile(`Serving remote control on (http://127\.0\.0\.1:[0-9]+/)`)

// start returns a child that is ready, or why there is none.
func (o Options) start(ctx context.Context) (*child, error) {
	c := &child{
		user: "backupd", password: rand.Text(),
		// Each request has a connection of its own: rclone 1.60 cuts some after a
		// bad answer, and the next request would be lost with them.
		http:  &http.Client{Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}},
		ended: make(chan struct{}),
	}
	c.printed = newPrinted(o.Stderr, append(o.secrets(), c.password))
	args := []string{
		"rcd", "--rc-addr", "127.0.0.1:0", "--rc-serve", "--ask-password=false",
		// Its own retries stay, but a backup's retries are around them.
		"--low-level-retries", "3", "--timeout", o.StallTimeout.String(), "--contimeout", min(o.StallTimeout, time.Minute).String(),
		// Uploads are in memory already.
		"--buffer-size", "0",
	}
	c.cmd = exec.Command(o.Binary, append(args, o.Args...)...)
	env, err := o.environment(c.user, c.password)
	if err != nil {
		return nil, err
	}
	c.cmd.Env = env
	if err := c.spawn(); err != nil {
		return nil, fmt.Errorf("start %s: %w", o.Binary, err)
	}
	wait := time.NewTimer(o.StallTimeout)
	defer wait.Stop()
	select {
	case c.base = <-c.printed.serving:
		return c, nil
	case <-c.ended:
		return nil, o.classify(fmt.Sprintf("rclone ended before it served: %s", c.printed.last()))
	case <-ctx.Done():
		c.kill()
		return nil, ctx.Err()
	case <-wait.C:
		c.kill()
		return nil, fmt.Errorf("rclone was started and does not serve after %s: %s", o.StallTimeout, c.printed.last())
	}
}

// spawn starts the process. It dies when we do; the kernel takes the death of
// the thread that started it for ours, so that thread is kept. It is a process
// group of its own: an interrupt at the terminal is ours to pass on.
func (c *child) spawn() error {
	from, to := io.Pipe()
	c.cmd.Stderr = to
	c.cmd.WaitDelay = time.Second // for what it started itself, and left behind
	c.cmd.SysProcAttr = childAttributes()
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.printed.read(from)
	}()
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait() // how it ended is in what it printed
		}
		_ = to.Close() // never fails
		<-read
		close(c.ended)
	}()
	return <-started
}

func (c *child) alive() bool {
	select {
	case <-c.ended:
		return false
	default:
		return true
	}
}

// kill ends the process at once.
func (c *child) kill() {
	if !c.alive() {
		return
	}
	killGroup(c.cmd.Process) // it may be gone
	<-c.ended
}

// stop lets it end, for a while.
func (c *child) stop() {
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	select {
	case <-c.ended:
	case <-time.After(goodbye):
		c.kill()
	}
}

// printed keeps the last lines of what rclone prints.
type printed struct {
	copy    io.Writer
	secrets []string
	serving chan string // gets the address once

	mu    sync.Mutex
	lines []string
}

const keptLines = 8

func newPrinted(copy io.Writer, secrets []string) *printed {
	return &printed{copy: copy, secrets: secrets, serving: make(chan string, 1)}
}

func (p *printed) read(from io.Reader) {
	lines := bufio.NewReader(from)
	for {
		// A line longer than the reader's buffer is several.
		b, _, err := lines.ReadLine()
		if err != nil {
			return
		}
		if m := serving.FindSubmatch(b); m != nil {
			select {
			case p.serving <- string(m[1]):
			default:
			}
			continue
		}
		line := redact(string(b), p.secrets)
		_, _ = fmt.Fprintln(p.copy, line) // nobody is told less by this
		p.mu.Lock()
		p.lines = append(p.lines[max(0, len(p.lines)-keptLines+1):], line)
		p.mu.Unlock()
	}
}

// last is what was printed last, in one line.
func (p *printed) last() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == 0 {
		return "it printed nothing"
	}
	return strings.Join(p.lines, " | ")
}

var (
	urlUser   = regexp.MustCompile(`(://)[^/@\s"']+@`)
	urlQuery  = regexp.MustCompile(`(\bhttps?://[^\s?"']+\?)[^\s"']+`)
	keyValues = regexp.MustCompile(`(?i)\b((?:[a-z0-9_-]*(?:token|secret|passw(?:or)?d|passphrase|api[_-]?key|access[_-]?key|signature|authorization))["']?\s*[:=]\s*["']?)(?:bearer |basic )?[^\s"',&}]+`)
)

// redact removes what rclone's own log leaves out as well: users and queries of
// addresses, values of what is named a secret, and the parameters of the remote.
func redact(s string, secrets []string) string {
	for _, secret := range secrets {
		s = strings.ReplaceAll(s, secret, "(secret)")
	}
	s = urlUser.ReplaceAllString(s, "${1}(secret)@")
	s = urlQuery.ReplaceAllString(s, "${1}(secret)")
	return keyValues.ReplaceAllString(s, "${1}(secret)")
}
