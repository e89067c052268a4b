package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/docker/docker/api/types/volume"
)

// proxy stands before the engine, notes what is asked of it, and refuses what it
// is told to; it returns its address.
func (l *lab) proxy(refuse func(*http.Request) bool) (address string, asked func() []string) {
	l.t.Helper()
	var mu sync.Mutex
	seen := map[string]bool{}
	engine := &url.URL{Scheme: "http", Host: "engine"}
	p := httputil.NewSingleHostReverseProxy(engine)
	p.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", defaultSocket)
	}}
	p.FlushInterval = -1
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		l.t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Method+" "+pattern(r.URL.Path)] = true
		mu.Unlock()
		if refuse != nil && refuse(r) {
			http.Error(w, "Forbidden", http.StatusForbidden)
			return
		}
		p.ServeHTTP(w, r)
	})}
	go s.Serve(ln)
	l.t.Cleanup(func() { s.Close() })
	return "tcp://" + ln.Addr().String(), func() []string {
		mu.Lock()
		defer mu.Unlock()
		var out []string
		for k := range seen {
			out = append(out, k)
		}
		return out
	}
}

// pattern makes a path of the API one for all versions and objects.
func pattern(path string) string {
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if strings.HasPrefix(parts[0], "v1.") {
		parts = parts[1:]
	}
	if len(parts) > 1 {
		switch {
		case parts[0] == "volumes" && parts[1] != "create", parts[0] == "containers" && parts[1] != "json" && parts[1] != "create":
			parts[1] = "ID"
		case parts[0] == "images":
			parts = append([]string{parts[0], "ID"}, parts[len(parts)-1])
		}
	}
	return "/" + strings.Join(parts, "/")
}

func onlyReading(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead
}

func TestAProxyThatForbidsPostIsGoodEnoughForAllThatOnlyReads(t *testing.T) {
	l := newLab(t)
	vol := l.volume("db", volume.CreateOptions{Labels: map[string]string{labelProject: l.prefix, labelVolume: "db"}})
	address, asked := l.proxy(onlyReading)
	t.Setenv("DOCKER_HOST", address)
	e, err := Connect(t.Context(), func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.Local || e.ID != l.ID {
		t.Errorf("engine %+v", e)
	}
	agent := l.create("agent", nil, all(compose(l.prefix, "backup"), binds(vol+":/volumes/db:ro")))
	l.start(agent)
	self, err := e.self(t.Context(), l.surroundingsOf(agent))
	if err != nil || self.ID != agent {
		t.Fatalf("self: %v, %v", self, err)
	}
	s, err := e.Stack(t.Context(), l.prefix)
	if err != nil || len(s.Services) != 1 || len(s.Volumes) != 1 {
		t.Errorf("stack: %+v, %v", s, err)
	}
	if used, err := (Witness{e, self}).EverStarted(t.Context(), vol); err != nil || len(used) > 0 {
		t.Errorf("witness: %v, %v", used, err)
	}
	if _, err := e.Coverage(t.Context(), true); err != nil {
		t.Errorf("coverage: %v", err)
	}
	// What docs/docker.md says is asked for, and nothing else.
	allowed := []string{"HEAD /_ping", "GET /_ping", "GET /info", "GET /containers/json", "GET /containers/ID/json", "GET /volumes", "GET /volumes/ID"}
	for _, a := range asked() {
		if !contains(allowed, a) {
			t.Errorf("asked for %s, which docs/docker.md does not have", a)
		}
	}
	_, err = e.RunWorker(t.Context(), WorkerOptions{Self: self, Command: []string{"/probe", "show"}})
	if !Forbidden(err) || !strings.Contains(err.Error(), "docs/docker.md") {
		t.Errorf("a worker: %v", err)
	}
	if _, err := e.EnsureVolumes(t.Context(), "x", "1", []VolumeSpec{{Key: "x", Name: l.prefix + "_x"}}); !Forbidden(err) {
		t.Errorf("a volume: %v", err)
	}
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}

func TestWhatWorkersAndOneOffContainersAskForIsWhatTheDocumentationSays(t *testing.T) {
	text, err := os.ReadFile("../../docs/docker.md")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	var mu sync.Mutex
	seen := map[string]bool{}
	// A reverse proxy cannot pass an attached stream through: a plain tunnel that
	// reads along can.
	address := tunnel(t, func(line string) {
		f := strings.Fields(line)
		if len(f) == 3 && strings.HasPrefix(f[2], "HTTP/1.") && strings.HasPrefix(f[1], "/") {
			u, err := url.Parse(f[1])
			if err == nil {
				mu.Lock()
				seen[f[0]+" "+pattern(u.Path)] = true
				mu.Unlock()
			}
		}
	})
	t.Setenv("DOCKER_HOST", address)
	e, err := Connect(t.Context(), func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	w, err := e.RunWorker(t.Context(), WorkerOptions{Self: l.agent(nil), Command: []string{"/probe", "show"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(w); err != nil {
		t.Error(err)
	}
	if _, err := w.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if _, err := e.CleanWorkers(t.Context()); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < 6 {
		t.Errorf("saw only %v", seen)
	}
	for a := range seen {
		if !strings.Contains(string(text), "`"+a+"`") {
			t.Errorf("%s is asked for, and docs/docker.md does not have it", a)
		}
	}
}

// tunnel passes connections on to the engine and shows every line that is sent to it.
func tunnel(t *testing.T, see func(line string)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				e, err := net.Dial("unix", defaultSocket)
				if err != nil {
					return
				}
				defer e.Close()
				go func() {
					_, _ = io.Copy(c, e)
					c.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(io.MultiWriter(e, &lineWatch{see: see}), c)
				e.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			}()
		}
	}()
	return "tcp://" + ln.Addr().String()
}

type lineWatch struct {
	see func(string)
	buf []byte
}

func (w *lineWatch) Write(p []byte) (int, error) {
	w.buf = append(w.buf, p...)
	for {
		i := strings.IndexByte(string(w.buf), '\n')
		if i < 0 {
			return len(p), nil
		}
		w.see(strings.TrimSpace(string(w.buf[:i])))
		w.buf = w.buf[i+1:]
	}
}

func TestAProxyThatHidesInfoStillServes(t *testing.T) {
	l := newLab(t)
	address, _ := l.proxy(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/info") })
	t.Setenv("DOCKER_HOST", address)
	e, err := Connect(t.Context(), func(text string) { t.Log(text) })
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.ID != "" {
		t.Errorf("id %q", e.ID)
	}
	if _, err := e.Volumes(t.Context()); err != nil {
		t.Error(err)
	}
	address, _ = l.proxy(func(r *http.Request) bool { return true })
	t.Setenv("DOCKER_HOST", address)
	if e, err := Connect(t.Context(), func(text string) { t.Log(text) }); err == nil {
		defer e.Close()
		if _, err := e.Volumes(t.Context()); !Forbidden(err) || !strings.Contains(err.Error(), "docs/docker.md") {
			t.Errorf("all is refused: %v", err)
		}
	}
}

func TestARefusalIsToldFromAnIDThatLooksLikeOne(t *testing.T) {
	if Forbidden(nil) || Forbidden(errors.New("no such container: 403abc405")) {
		t.Error("taken for a refusal")
	}
}

func TestTheHostsEngineIsTheOneThatDockerWouldTake(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	t.Setenv("DOCKER_HOST", "")
	e, err := ConnectHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !e.Local || e.ID != l.ID {
		t.Errorf("by default %+v", e)
	}
	e.Close()

	address, _ := l.proxy(nil)
	sum := sha256.Sum256([]byte("work"))
	meta := filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]))
	if err := os.MkdirAll(meta, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(meta, "meta.json"), []byte(`{"Name":"work","Metadata":{},"Endpoints":{"docker":{"Host":"`+address+`","SkipTLSVerify":false}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"auths":{},"currentContext":"work"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if e, err = ConnectHost(t.Context()); err != nil || e.Local {
		t.Fatalf("by the current context: %+v, %v", e, err)
	}
	e.Close()
	t.Setenv("DOCKER_CONTEXT", "default")
	if e, err = ConnectHost(t.Context()); err != nil || !e.Local {
		t.Fatalf("by DOCKER_CONTEXT: %+v, %v", e, err)
	}
	e.Close()
	t.Setenv("DOCKER_CONTEXT", "nothing")
	if _, err = ConnectHost(t.Context()); err == nil || !strings.Contains(err.Error(), "docker context ls") {
		t.Errorf("a context that is not there: %v", err)
	}
}

// ssh is played by a program that, as `docker system dial-stdio` does, connects
// stdin and stdout with the engine's socket.
func TestAnEngineIsReachedThroughACommand(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\necho \"$@\" >"+dir+"/args\nexec python3 -c '"+dialStdio+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/usr/bin/python3"); err != nil {
		t.Skip("needs python3")
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("DOCKER_HOST", "ssh://user@server.example:2222")
	e, err := ConnectHost(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.ID != l.ID || e.Local {
		t.Errorf("engine %+v", e)
	}
	args, _ := os.ReadFile(filepath.Join(dir, "args"))
	if want := "-o ConnectTimeout=30 -T -l user -p 2222 -- server.example docker system dial-stdio\n"; string(args) != want {
		t.Errorf("ssh %s, want %s", args, want)
	}
	o, stdout, _ := l.oneOff("echo")
	o.Stdin = strings.NewReader("over ssh\n")
	if code, err := e.Run(t.Context(), o); err != nil || code != 7 || !strings.Contains(stdout.String(), "echo over ssh") {
		t.Errorf("exit code %d, %v: %q", code, err, stdout)
	}
}

const dialStdio = `
import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.connect("` + defaultSocket + `")
def send():
    while True:
        d = os.read(0, 65536)
        if not d: break
        s.sendall(d)
    s.shutdown(socket.SHUT_WR)
threading.Thread(target=send, daemon=True).start()
while True:
    d = s.recv(65536)
    if not d: break
    os.write(1, d)
`

func TestAddressesThatAreNoneAreRefused(t *testing.T) {
	for _, host := range []string{"ssh://", "ssh://-oProxyCommand=x", "ssh://host/path", "ssh://%zz"} {
		if args, err := sshArgs(host); err == nil {
			t.Errorf("%s: %q", host, args)
		}
	}
	got, err := sshArgs("ssh://server")
	if err != nil || !reflect.DeepEqual(got[len(got)-5:], []string{"--", "server", "docker", "system", "dial-stdio"}) {
		t.Errorf("%q, %v", got, err)
	}
}
