package teststack

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// SocketProxy stands between a client and the engine's socket, and forbids what
// allow does not allow, as socket proxies do. TCP is at 127.0.0.1; Socket is a
// file that can be mounted into a container.
type SocketProxy struct {
	TCP    string // for DOCKER_HOST: tcp://127.0.0.1:PORT
	Socket string // the path of a socket, without unix://

	mu     sync.Mutex
	denied []string
}

// ReadOnly allows what reads: GET and HEAD.
func ReadOnly(method, _ string) bool { return method == http.MethodGet || method == http.MethodHead }

// NewSocketProxy starts a proxy that ends with the test. path, which allow is
// asked about, is without the API's version: /containers/json.
func NewSocketProxy(t testing.TB, allow func(method, path string) bool) *SocketProxy {
	t.Helper()
	return newSocketProxy(t, allow, nil)
}

// NewSocketProxyOf is one that allows everything and hides the containers and
// volumes of all Compose projects but these: a machine of its own for who takes
// care of a whole machine.
func NewSocketProxyOf(t testing.TB, projects ...string) *SocketProxy {
	t.Helper()
	ours := func(item map[string]any) bool {
		labels, _ := item["Labels"].(map[string]any)
		project, _ := labels["com.docker.compose.project"].(string)
		return slices.Contains(projects, project)
	}
	return newSocketProxy(t, func(string, string) bool { return true }, func(r *http.Response) error {
		switch unversioned(r.Request.URL.Path) {
		case "/containers/json":
			return rewrite(r, func(list *[]map[string]any) {
				*list = slices.DeleteFunc(*list, func(c map[string]any) bool { return !ours(c) })
			})
		case "/volumes":
			return rewrite(r, func(list *struct{ Volumes, Warnings any }) {
				all, _ := list.Volumes.([]any)
				list.Volumes = slices.DeleteFunc(all, func(v any) bool {
					item, _ := v.(map[string]any)
					return !ours(item)
				})
			})
		}
		return nil
	})
}

// rewrite changes the JSON of an answer.
func rewrite[T any](r *http.Response, change func(*T)) error {
	var body T
	err := json.NewDecoder(r.Body).Decode(&body)
	r.Body.Close()
	if err != nil {
		return err
	}
	change(&body)
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(text)), int64(len(text)), nil
	r.Header.Set("Content-Length", strconv.Itoa(len(text)))
	return nil
}

func newSocketProxy(t testing.TB, allow func(method, path string) bool, modify func(*http.Response) error) *SocketProxy {
	t.Helper()
	Engine(t)
	socket := "/var/run/docker.sock"
	if host := os.Getenv("DOCKER_HOST"); host != "" {
		path, ok := strings.CutPrefix(host, "unix://")
		if !ok {
			t.Skipf("DOCKER_HOST=%s is no socket to stand before", host)
		}
		socket = path
	}
	engine := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(engine.CloseIdleConnections)
	forward := &httputil.ReverseProxy{
		// The reverse proxy hands hijacked connections (attach, exec) through.
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "docker"}) },
		Transport:      engine,
		FlushInterval:  -1,
		ModifyResponse: modify,
	}
	p := &SocketProxy{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		path := unversioned(r.URL.Path)
		if !allow(r.Method, path) {
			p.mu.Lock()
			p.denied = append(p.denied, r.Method+" "+path)
			p.mu.Unlock()
			http.Error(w, "403 Forbidden: "+r.Method+" "+path, http.StatusForbidden)
			return
		}
		forward.ServeHTTP(w, r)
	})

	// Short: a socket's path has room for 107 bytes, and t.TempDir takes more.
	dir, err := os.MkdirTemp("", "socketproxy-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p.Socket = filepath.Join(dir, "docker.sock")
	p.TCP = "tcp://" + p.listen(t, handler, "tcp", "127.0.0.1:0")
	p.listen(t, handler, "unix", p.Socket)
	return p
}

func (p *SocketProxy) listen(t testing.TB, handler http.Handler, network, address string) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: time.Minute}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(l) // ends when the test closes it
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
	})
	return l.Addr().String()
}

// Denied lists what was forbidden so far, as "METHOD /path".
func (p *SocketProxy) Denied() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.denied...)
}

// unversioned takes /v1.41 off a path.
func unversioned(path string) string {
	first, rest, ok := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	if ok && strings.HasPrefix(first, "v1.") {
		return "/" + rest
	}
	return path
}
