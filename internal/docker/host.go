package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/docker/docker/client"
)

// ConnectHost reaches the engine that the `docker` command of this machine's user
// would: DOCKER_HOST, else DOCKER_CONTEXT, else the current context, else the usual
// sockets, those of Docker Desktop and of rootless engines among them. An ssh://
// engine is reached as that command does, by `ssh HOST docker system dial-stdio`.
func ConnectHost(ctx context.Context) (*Engine, error) {
	if host := os.Getenv(client.EnvOverrideHost); host != "" {
		if strings.HasPrefix(host, "ssh://") {
			return connectSSH(ctx, host)
		}
		return connect(ctx, host, client.FromEnv)
	}
	dir := configDir()
	name, err := currentContext(dir)
	if err != nil {
		return nil, err
	}
	if name != "" && name != "default" {
		return connectContext(ctx, dir, name)
	}
	if runtime.GOOS == "windows" {
		return connect(ctx, client.DefaultDockerHost, client.WithHost(client.DefaultDockerHost))
	}
	var tried []string
	for _, socket := range sockets() {
		if _, err := os.Stat(socket); err == nil {
			return connect(ctx, "unix://"+socket, client.WithHost("unix://"+socket))
		}
		tried = append(tried, socket)
	}
	return nil, fmt.Errorf("%w: there is none of %s; start Docker, or set DOCKER_HOST", ErrNoEngine, strings.Join(tried, ", "))
}

func sockets() []string {
	list := []string{defaultSocket}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		list = append(list, filepath.Join(dir, "docker.sock"))
	}
	if home, err := os.UserHomeDir(); err == nil {
		list = append(list, filepath.Join(home, ".docker", "run", "docker.sock"), filepath.Join(home, ".docker", "desktop", "docker.sock"))
	}
	return list
}

// configDir is where the `docker` command keeps its settings.
func configDir() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return dir
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker")
}

func currentContext(dir string) (string, error) {
	if name := os.Getenv("DOCKER_CONTEXT"); name != "" {
		return name, nil
	}
	path := filepath.Join(dir, "config.json")
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || dir == "" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("find the Docker engine: %w", err)
	}
	var config struct { // an open schema: the docker command's own
		CurrentContext string `json:"currentContext"`
	}
	if err := json.Unmarshal(data, &config); err != nil {
		return "", fmt.Errorf("find the Docker engine: read %s: %w", path, err)
	}
	return config.CurrentContext, nil
}

// connectContext reaches the engine of a `docker context`.
func connectContext(ctx context.Context, dir, name string) (*Engine, error) {
	fail := func(err error) (*Engine, error) {
		return nil, fmt.Errorf("connect to the engine of Docker context %s: %w; `docker context ls` lists them, and DOCKER_HOST overrides them", name, err)
	}
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	data, err := os.ReadFile(filepath.Join(dir, "contexts", "meta", id, "meta.json"))
	if err != nil {
		return fail(err)
	}
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := json.Unmarshal(data, &meta); err != nil {
		return fail(err)
	}
	host := meta.Endpoints["docker"].Host
	switch {
	case host == "":
		return fail(errors.New("it has no Docker endpoint"))
	case strings.HasPrefix(host, "ssh://"):
		return connectSSH(ctx, host)
	}
	opts := []client.Opt{client.WithHost(host)}
	certs := filepath.Join(dir, "contexts", "tls", id, "docker")
	if _, err := os.Stat(filepath.Join(certs, "ca.pem")); err == nil {
		opts = append(opts, client.WithTLSClientConfig(filepath.Join(certs, "ca.pem"), filepath.Join(certs, "cert.pem"), filepath.Join(certs, "key.pem")))
	}
	return connect(ctx, host, opts...)
}

// connectSSH reaches an engine through the ssh command, so that the user's
// configuration, agent and known hosts count.
func connectSSH(ctx context.Context, host string) (*Engine, error) {
	args, err := sshArgs(host)
	if err != nil {
		return nil, err
	}
	dial := func(context.Context, string, string) (net.Conn, error) { return dialCommand("ssh", args...) }
	e, err := connect(ctx, host, client.WithHost("http://docker.example.com"), client.WithDialContext(dial))
	if e != nil {
		e.Local = false
	}
	return e, err
}

func sshArgs(host string) ([]string, error) {
	u, err := url.Parse(host)
	if err != nil || u.Hostname() == "" || u.Path != "" && u.Path != "/" || strings.HasPrefix(u.Hostname(), "-") {
		return nil, fmt.Errorf("connect to the Docker engine at %s: it must be ssh://USER@HOST:PORT", host)
	}
	args := []string{"-o", "ConnectTimeout=30", "-T"}
	if u.User != nil {
		args = append(args, "-l", u.User.Username())
	}
	if p := u.Port(); p != "" {
		args = append(args, "-p", p)
	}
	return append(args, "--", u.Hostname(), "docker", "system", "dial-stdio"), nil
}

// commandConn is a connection over a command's stdin and stdout.
type commandConn struct {
	io.Reader
	in    io.WriteCloser
	out   io.Closer
	cmd   *exec.Cmd
	close sync.Once
}

func dialCommand(name string, args ...string) (net.Conn, error) {
	cmd := exec.Command(name, args...)
	cmd.Stderr = os.Stderr // a question for a passphrase, or why it does not connect
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &commandConn{Reader: out, in: in, out: out, cmd: cmd}, nil
}

func (c *commandConn) Write(p []byte) (int, error) { return c.in.Write(p) }

// CloseWrite ends what is sent, and still reads what comes.
func (c *commandConn) CloseWrite() error { return c.in.Close() }

func (c *commandConn) Close() error {
	c.close.Do(func() {
		_ = c.in.Close()
		_ = c.out.Close()
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait() // killed: how it ended tells nothing
	})
	return nil
}

type commandAddr struct{}

func (commandAddr) Network() string { return "command" }
func (commandAddr) String() string  { return "command" }

func (c *commandConn) LocalAddr() net.Addr  { return commandAddr{} }
func (c *commandConn) RemoteAddr() net.Addr { return commandAddr{} }

// The client sets deadlines only to clear them.

func (c *commandConn) SetDeadline(time.Time) error      { return nil }
func (c *commandConn) SetReadDeadline(time.Time) error  { return nil }
func (c *commandConn) SetWriteDeadline(time.Time) error { return nil }
