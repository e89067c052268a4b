// Package docker is all that backupd knows of containers: which one it runs
// in, what its stack consists of, how services are made to stand still, and how
// a container of its own image is run beside them.
//
// Invariants: nothing outside the own Compose project is ever changed, unless
// the caller names another; whatever was stopped or paused is written to a journal
// first and started again; an engine is optional, and one that allows reading
// only is good enough for all that changes nothing.
//
// It is the only importer of the Docker client, so that moving to its successor
// is one commit. It knows neither snapshots nor targets nor settings.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// ErrNoEngine: no engine can be reached, and none was asked for by name.
var ErrNoEngine = errors.New("no Docker engine")

// defaultSocket is where an engine listens if DOCKER_HOST does not say.
const defaultSocket = "/var/run/docker.sock"

// answerTimeout is how long an engine may take for the first answer. Requests
// that last, such as exec and stop, have time-outs of their own.
const answerTimeout = 15 * time.Second

// startTimeout is how long an engine at a TCP address may take until it listens: a
// proxy before the engine is a service of the same project, which Compose starts
// at the same time.
const startTimeout = 30 * time.Second

// runGrace is how long a command that was interrupted may take to end well.
const runGrace = 60 * time.Second

// Engine is a Docker engine.
type Engine struct {
	api *client.Client
	// ID is the engine's own id, the same for as long as it is installed.
	ID string
	// Version and API are the engine's version and the API version spoken with it.
	Version, API string
	// Swarm says whether the engine is a manager of a swarm.
	Swarm bool
	// NoCgroups: the engine has no control groups to put containers into, as a
	// rootless one without systemd. It can neither pause nor limit them, nor list
	// their processes.
	NoCgroups bool
	// Local says whether the engine is reached by a socket of this machine, and
	// so sees this machine's files.
	Local bool
}

// Connect reaches the engine that DOCKER_HOST (and DOCKER_TLS_VERIFY,
// DOCKER_CERT_PATH) names, or the one at /var/run/docker.sock. ErrNoEngine where
// neither is there; another error where one is named or mounted and does not answer.
// One at a TCP address is waited for until it listens, 30 seconds at most; notice is told of that.
func Connect(ctx context.Context, notice func(text string)) (*Engine, error) {
	host := os.Getenv(client.EnvOverrideHost)
	if host == "" {
		if _, err := os.Stat(defaultSocket); err != nil {
			return nil, fmt.Errorf("%w: there is no %s, and DOCKER_HOST is not set", ErrNoEngine, defaultSocket)
		}
		host = "unix://" + defaultSocket
	}
	return connectStarting(ctx, host, startTimeout, notice)
}

// connectStarting is connect for an engine that may be about to start.
func connectStarting(ctx context.Context, host string, limit time.Duration, notice func(text string)) (*Engine, error) {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	end := time.NewTimer(limit)
	defer end.Stop()
	for told := false; ; told = true {
		e, err := connect(ctx, host, client.FromEnv)
		if err == nil || !strings.HasPrefix(host, "tcp://") || !notListening(err) {
			return e, err
		}
		if !told {
			notice(fmt.Sprintf("the Docker engine at %s does not listen yet; waiting for it, %v at most", host, limit))
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-end.C:
			return nil, err
		case <-again.C:
		}
	}
}

// notListening says whether nobody was reached: the connection was refused or
// timed out, or the name has no address, as that of a service without a container.
func notListening(err error) bool {
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return true
	}
	// Of a refusal and a time-out the client keeps nothing but a text.
	return strings.Contains(err.Error(), "Cannot connect to the Docker daemon")
}

// connect reaches an engine and asks what it is; host is for errors.
func connect(ctx context.Context, host string, opts ...client.Opt) (*Engine, error) {
	api, err := client.NewClientWithOpts(append(opts, client.WithAPIVersionNegotiation())...)
	if err != nil {
		return nil, fmt.Errorf("connect to the Docker engine at %s: %w; look after DOCKER_HOST", host, err)
	}
	e := &Engine{api: api, Local: strings.HasPrefix(host, "unix://") || strings.HasPrefix(host, "npipe://")}
	if err := e.greet(ctx); err != nil {
		_ = api.Close() // nothing was asked of it
		return nil, fmt.Errorf("connect to the Docker engine at %s: %w", host, explainAccess(err))
	}
	return e, nil
}

// greet asks what engine it is. A proxy that hides /info leaves ID empty and
// Swarm unknown; one that hides all but the ping will refuse later, with a
// better reason.
func (e *Engine) greet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	info, err := e.api.Info(ctx)
	if Forbidden(err) {
		ping, perr := e.api.Ping(ctx)
		if perr != nil {
			return perr
		}
		e.API = e.api.ClientVersion()
		return checkOS(ping.OSType)
	}
	if err != nil {
		return err
	}
	e.ID, e.Version, e.API = info.ID, info.ServerVersion, e.api.ClientVersion()
	e.Swarm = info.Swarm.ControlAvailable
	e.NoCgroups = info.CgroupDriver == "none"
	return checkOS(info.OSType)
}

func checkOS(kind string) error {
	if kind != "" && kind != "linux" {
		return fmt.Errorf("it runs %s containers; volumes of Linux containers only can be backed up", kind)
	}
	return nil
}

// Close ends the connections.
func (e *Engine) Close() error { return e.api.Close() }

// explainAccess adds what to do to an engine's refusal.
func explainAccess(err error) error {
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w; run as root, or as a user of the socket's group", err)
	case client.IsErrConnectionFailed(err):
		return fmt.Errorf("%w; start it, or mount its socket, or unset DOCKER_HOST to go without", err)
	case Forbidden(err):
		return fmt.Errorf("%w; a proxy before the engine forbids it: allow it there (docs/docker.md lists what is asked for)", err)
	}
	return err
}

// Forbidden says whether an error is the refusal of a proxy before the engine,
// which tells a request that is not allowed from one that failed. Proxies
// answer 403, or 405 for a method that they do not pass.
func Forbidden(err error) bool {
	if err == nil {
		return false
	}
	// The client keeps the status as a class of error, and 405 shares one with
	// others: there its text decides.
	return cerrdefs.IsPermissionDenied(err) || strings.Contains(err.Error(), http.StatusText(http.StatusMethodNotAllowed))
}
