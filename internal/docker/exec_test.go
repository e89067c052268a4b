package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"
)

// proxy is between the engine and a client. It refuses what it is told to with
// 403, as socket proxies do, and can cut all connections.
type proxy struct {
	*httptest.Server
	mu    sync.Mutex
	conns []net.Conn
}

func (s *stage) proxy(allow func(*http.Request) bool) (*proxy, *Engine) {
	s.t.Helper()
	host, err := client.ParseHostURL(s.api.DaemonHost())
	s.must(err)
	rev := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: "engine"}) },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			if host.Scheme == "unix" {
				return d.DialContext(ctx, "unix", host.Host)
			}
			return d.DialContext(ctx, "tcp", host.Host)
		}},
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	p := &proxy{}
	p.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !allow(r) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n")
			return
		}
		rev.ServeHTTP(w, r)
	}))
	p.Config.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.conns = append(p.conns, c)
		}
	}
	p.Start()
	s.t.Cleanup(p.Close)
	address := "tcp://" + p.Listener.Addr().String()
	e, err := connect(s.t.Context(), address, client.WithHost(address))
	s.must(err)
	s.t.Cleanup(func() { e.Close() })
	return p, e
}

// cut breaks all connections that there are.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
}

func TestAnEngineThatIsRestartedIsWaitedFor(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	c := s.add(part{service: "a", mounts: []string{data + ":/data"}})
	p, e := s.proxy(func(*http.Request) bool { return true })
	q := e.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{data}, StateDir: s.state, Run: "r"})
	s.must(q.Freeze(t.Context()))
	p.cut()
	p.Listener.Close()
	thawed := make(chan error)
	go func() { thawed <- q.Thaw(t.Context()) }()
	listener, err := net.Listen("tcp", p.Listener.Addr().String())
	s.must(err)
	select {
	case err := <-thawed:
		t.Fatalf("thawed without an engine: %v", err)
	default:
	}
	back := httptest.NewUnstartedServer(p.Config.Handler)
	back.Listener.Close()
	back.Listener = listener
	back.Start()
	t.Cleanup(back.Close)
	s.must(<-thawed)
	s.wantStates("thawed", []string{c}, "running")
}

// shortened passes a stream's first bytes alone, and then ends it well: as a
// proxy between the engine and a client does that gives up.
func (s *stage) shortened(limit int64) *Engine {
	s.t.Helper()
	host, err := client.ParseHostURL(s.api.DaemonHost())
	s.must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				up, err := net.Dial(host.Scheme, host.Host)
				if err != nil {
					return
				}
				defer up.Close()
				var streams atomic.Bool
				go func() {
					b := make([]byte, 32<<10)
					for {
						n, err := c.Read(b)
						if bytes.Contains(b[:n], []byte("Upgrade: tcp")) {
							streams.Store(true)
						}
						if _, werr := up.Write(b[:n]); err != nil || werr != nil {
							return
						}
					}
				}()
				var head []byte // of the answer, up to where its headers end
				var passed int64
				b := make([]byte, 4<<10)
				for {
					n, err := up.Read(b)
					if streams.Load() {
						stream := n // bytes of it in this read
						if !bytes.Contains(head, []byte("\r\n\r\n")) {
							head = append(head, b[:n]...)
							_, behind, _ := bytes.Cut(head, []byte("\r\n\r\n"))
							stream = len(behind)
						}
						drop := max(0, passed+int64(stream)-limit) // the rest is read and dropped
						n -= int(drop)
						passed += int64(stream) - drop
					}
					if _, werr := c.Write(b[:n]); err != nil || werr != nil {
						return
					}
				}
			}()
		}
	}()
	e, err := connect(s.t.Context(), l.Addr().String(), client.WithHost("tcp://"+l.Addr().String()))
	s.must(err)
	s.t.Cleanup(func() { e.Close() })
	return e
}

func TestADumpThatIsCutShortIsNoDump(t *testing.T) {
	s := newStage(t)
	id := s.add(part{service: "db"})
	const command = `printf aaaa; sleep 0.2; printf bbbb; sleep 0.2`
	if whole, err := s.dump(s.shortened(1<<30), id, Dump{Command: command}); whole != "aaaabbbb" || err != nil {
		t.Fatalf("got %q, %v", whole, err)
	}
	// A frame is a header of 8 bytes and what was written.
	for limit, want := range map[int64]string{0: "before all was read", 5: "unexpected EOF", 11: "unexpected EOF", 12: "before all was read", 24: "before all was read", 40: "unexpected EOF"} {
		if got, err := s.dump(s.shortened(limit), id, Dump{Command: command}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("cut after %d bytes: got %q, %v", limit, got, err)
		}
	}
}

func get(r *http.Request) bool { return r.Method == http.MethodGet || r.Method == http.MethodHead }

func TestAProxyThatForbidsIsToldApartAndNothingIsTouched(t *testing.T) {
	s := newStage(t)
	s.pauses()
	data := s.volume("data")
	mounts := []string{data + ":/data"}
	db := s.add(part{service: "db", health: true, mounts: mounts})
	cache := s.add(part{service: "cache", mounts: mounts})
	no := func(path string) func(*http.Request) bool {
		re := regexp.MustCompile(path)
		return func(r *http.Request) bool { return !re.MatchString(r.URL.Path) }
	}
	for _, c := range []struct {
		name, permission string
		allow            func(*http.Request) bool
	}{
		{"reading only", "POST /containers/ID/start", get},
		{"stop, but no start", "POST /containers/ID/start", no(`/containers/[^/]+/start$`)},
		{"no stop", "POST /containers/ID/stop", no(`/stop$`)},
		{"pause, but no unpause", "POST /containers/ID/unpause", no(`/unpause$`)},
		{"no pause", "POST /containers/ID/pause", no(`/pause$`)},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, e := s.proxy(c.allow)
			q := e.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{data}, StateDir: s.state, Run: "r"})
			p, err := q.Plan(t.Context())
			s.must(err)
			check := q.Check(t.Context(), p)
			err = q.Freeze(t.Context())
			for _, err := range []error{check, err} {
				if !errors.Is(err, ErrMayNot) || !strings.Contains(err.Error(), c.permission) || Demanded(err) {
					t.Errorf("got %v", err)
				}
			}
			s.wantStates("refused", []string{db, cache}, "running", "running")
			if len(s.journals()) > 0 {
				t.Errorf("journals: %v", s.journals())
			}
			s.must(q.Thaw(t.Context()))
			s.must(q.Post(t.Context()))
		})
	}
	t.Run("a label asks for it", func(t *testing.T) {
		s.add(part{service: "app", labels: map[string]string{"backupd.quiesce": "pause"}})
		_, e := s.proxy(get)
		q := e.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{data}, StateDir: s.state, Run: "r"})
		if err := q.Freeze(t.Context()); !errors.Is(err, ErrMayNot) || !Demanded(err) || !strings.Contains(err.Error(), "take the label off app") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("hooks and dumps", func(t *testing.T) {
		c := s.add(part{service: "hooked", labels: map[string]string{"backupd.pre": "true"}})
		_, e := s.proxy(no(`/exec$`))
		q := e.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{"none"}, StateDir: s.state, Run: "r"})
		if err := q.Pre(t.Context()); !errors.Is(err, ErrMayNot) || !Demanded(err) {
			t.Errorf("pre: %v", err)
		}
		// The default alone would be left out, but a hook is asked for.
		_, reading := s.proxy(get)
		q = reading.Quiescer(QuiesceOptions{Project: s.project, Volumes: []string{data}, StateDir: s.state, Run: "r"})
		p, err := q.Plan(t.Context())
		s.must(err)
		p.Steps = slices.DeleteFunc(p.Steps, func(s Step) bool { return s.Asked })
		if err := q.Check(t.Context(), p); !Demanded(err) || !strings.Contains(err.Error(), "run hooks") {
			t.Errorf("check: %v", err)
		}
		_, err = e.OpenDump(t.Context(), DumpOf{"hooked", Container{ID: c}, Dump{Command: "echo x"}})
		if !errors.Is(err, ErrMayNot) || !Demanded(err) {
			t.Errorf("dump: %v", err)
		}
	})
}

func TestHooksRunAroundTheFreezeInTheOrderOfTheServices(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	hooks := func(name string) map[string]string {
		return map[string]string{
			"backupd.pre": "echo pre-" + name + "-$(id -u) >> /data/log", "backupd.pre.user": "0",
			"backupd.post": "echo post-" + name + "-$(id -u) >> /data/log", "backupd.post.user": "65534:65534",
		}
	}
	mounts := []string{data + ":/data"}
	db := s.add(part{service: "db", mounts: mounts, labels: hooks("db"), script: "umask 0; touch /data/log; " + idle})
	s.add(part{service: "app", needs: "db:service_started:false", mounts: mounts, labels: hooks("app")})
	s.add(part{service: "gone", stopped: true, mounts: mounts, labels: hooks("gone")})
	eventually(t, "the log is there", func() bool { _, err := s.sh(db, "test -w /data/log"); return err == nil })
	q := s.quiescer(data)
	s.must(q.Pre(t.Context()))
	s.must(q.Freeze(t.Context()))
	s.must(q.Thaw(t.Context()))
	s.must(q.Post(t.Context()))
	if got, want := s.mustSh(db, "cat /data/log"), "pre-app-0\npre-db-0\npost-db-65534\npost-app-65534\n"; got != want {
		t.Errorf("hooks ran as %q, want %q", got, want)
	}
	if w := q.Warnings(); len(w) != 1 || !strings.Contains(w[0], "service gone does not run") {
		t.Errorf("warnings: %q", w)
	}
	if len(s.journals()) > 0 {
		t.Errorf("journals: %v", s.journals())
	}
}

func TestAPreHookThatFailsIsAnErrorWithItsLastWordsAndPostRunsAllTheSame(t *testing.T) {
	s := newStage(t)
	c := s.add(part{service: "app", labels: map[string]string{
		"backupd.pre": "exec >&2; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; done; echo oh no; exit 7", "backupd.post": "touch /tmp/post",
	}})
	q := s.quiescer()
	err := q.Pre(t.Context())
	for _, want := range []string{"run the backupd.pre hook of service app in container " + s.project + "-app-1: exit code 7", "oh no", "line 12"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
	if err != nil && strings.Contains(err.Error(), "line 1\n") {
		t.Errorf("more than the last lines: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.must(q.Thaw(ctx))
	s.must(q.Post(ctx))
	s.mustSh(c, "test -e /tmp/post")
}

// processes are what runs in a container, besides what is asked with.
func (s *stage) processes(id string) []string {
	s.t.Helper()
	if s.NoCgroups { // the engine cannot tell; what is in the container can
		out, err := s.sh(id, `for p in /proc/[0-9]*; do sed 's/\x00/ /g' $p/cmdline; echo; done 2>/dev/null`)
		s.must(err)
		return strings.Split(out, "\n")
	}
	top, err := s.api.ContainerTop(s.t.Context(), id, nil)
	s.must(err)
	var out []string
	for _, row := range top.Processes {
		out = append(out, row[len(row)-1])
	}
	return out
}

func TestAHookThatHangsIsEndedWithAllThatItStarted(t *testing.T) {
	s := newStage(t)
	for _, c := range []struct{ name, pre, user string }{
		{"ends when told", "sleep 4321 & sleep 4322", ""},
		{"has to be killed", `trap "" TERM; sleep 4321 & while :; do sleep 4322; done`, ""},
		{"as another user", "sleep 4321 & sleep 4322", "65534"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.t = t
			labels := map[string]string{"backupd.pre": "echo going on; " + c.pre, "backupd.pre.timeout": "300ms"}
			if c.user != "" {
				labels["backupd.pre.user"] = c.user
			}
			id := s.add(part{service: "app", labels: labels})
			err := s.quiescer().Pre(t.Context())
			if err == nil || !strings.Contains(err.Error(), "it took longer than 300ms, and was ended") {
				t.Errorf("pre: %v", err)
			}
			eventually(t, "all is ended", func() bool {
				return !slices.ContainsFunc(s.processes(id), func(p string) bool { return strings.Contains(p, "432") })
			})
		})
	}
}

func TestAContainerWithoutAShellIsSaidToHaveNone(t *testing.T) {
	s := newStage(t)
	c := s.add(part{service: "app", labels: map[string]string{"backupd.pre": "true"}})
	s.mustSh(c, "rm /bin/sh")
	err := s.quiescer().Pre(t.Context())
	if err == nil || !strings.Contains(err.Error(), "sh") {
		t.Errorf("pre: %v", err)
	}
	t.Log(err)
}

func (s *stage) dump(e *Engine, id string, d Dump) (string, error) {
	s.t.Helper()
	r, err := e.OpenDump(s.t.Context(), DumpOf{"db", Container{ID: id, Name: "db-1"}, d})
	if err != nil {
		return "", err
	}
	out, err := io.ReadAll(r)
	if cerr := r.Close(); cerr != nil && err == nil {
		err = cerr
	}
	return string(out), err
}

func TestADumpIsWholeOrAnError(t *testing.T) {
	s := newStage(t)
	id := s.add(part{service: "db"})
	long := `i=0; while [ $i -lt 20000 ]; do echo "line $i of what is dumped"; i=$((i+1)); done`
	got, err := s.dump(s.Engine, id, Dump{Command: long})
	s.must(err)
	if !strings.HasSuffix(got, "\nline 19999 of what is dumped\n") || strings.Count(got, "\n") != 20000 {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-50):])
	}
	if got, err := s.dump(s.Engine, id, Dump{Command: "printf x"}); got != "x" || err != nil {
		t.Errorf("one byte: %q, %v", got, err)
	}
	for _, c := range []struct {
		name, command, want string
		dump                Dump
	}{
		{"fails at once", "echo no such database >&2; exit 3", "exit code 3; it said last: no such database", Dump{}},
		{"fails at the end", long + "; echo disk full >&2; exit 1", "exit code 1; it said last: disk full", Dump{}},
		{"is killed", "echo x; kill -9 $$", "exit code 137", Dump{}},
		{"writes nothing", "echo nothing to do >&2", "it succeeded and wrote nothing; it said last: nothing to do", Dump{}},
		{"is not there", "nonexistent-tool", "exit code 127", Dump{}},
		{"takes too long", "echo x; sleep 4321", "it took longer than 300ms", Dump{Timeout: 300 * time.Millisecond}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.dump.Command = c.command
			_, err := s.dump(s.Engine, id, c.dump)
			if err == nil || !strings.Contains(err.Error(), "dump service db in container db-1: ") || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v", err)
			}
		})
	}
	if slices.ContainsFunc(s.processes(id), func(p string) bool { return strings.Contains(p, "4321") }) {
		t.Error("the dump that took too long goes on")
	}
}

func TestADumpWhoseConnectionBreaksIsAnError(t *testing.T) {
	s := newStage(t)
	id := s.add(part{service: "db"})
	for _, c := range []struct{ name, command string }{
		// It ends well all the same, and only what was read tells.
		{"in the middle", `echo begin; while [ ! -e /tmp/go ]; do sleep 0.05; done; echo end; touch /tmp/gone`},
		{"while it goes on", `echo begin; sleep 4321`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, e := s.proxy(func(*http.Request) bool { return true })
			r, err := e.OpenDump(t.Context(), DumpOf{"db", Container{ID: id, Name: "db-1"}, Dump{Command: c.command}})
			s.must(err)
			eventually(t, "it has begun", func() bool {
				return slices.ContainsFunc(s.processes(id), func(p string) bool { return strings.Contains(p, "begin") })
			})
			p.cut()
			s.mustSh(id, "touch /tmp/go")
			got, err := io.ReadAll(r)
			if err == nil {
				t.Errorf("a clean end after %q", got)
			}
			t.Log(err)
			r.Close()
			if slices.ContainsFunc(s.processes(id), func(p string) bool { return strings.Contains(p, "4321") }) {
				t.Error("it goes on")
			}
		})
	}
	t.Run("and the container is gone", func(t *testing.T) {
		gone := s.add(part{service: "db", number: 2})
		r, err := s.OpenDump(t.Context(), DumpOf{"db", Container{ID: gone, Name: "db-2"}, Dump{Command: "echo begin; sleep 4321"}})
		s.must(err)
		s.must(s.api.ContainerRemove(t.Context(), gone, container.RemoveOptions{Force: true}))
		if got, err := io.ReadAll(r); err == nil {
			t.Errorf("a clean end after %q", got)
		}
		s.must(r.Close())
	})
}

func TestACancelledDumpIsEndedInItsContainer(t *testing.T) {
	s := newStage(t)
	id := s.add(part{service: "db"})
	for _, how := range []string{"cancelled", "closed"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := s.OpenDump(ctx, DumpOf{"db", Container{ID: id, Name: "db-1"}, Dump{Command: "while :; do echo x; sleep 0.1; done"}})
		s.must(err)
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if how == "cancelled" {
			cancel()
			if _, err := io.ReadAll(r); !errors.Is(err, context.Canceled) {
				t.Errorf("read: %v", err)
			}
		}
		s.must(r.Close())
		cancel()
		if got := s.processes(id); slices.ContainsFunc(got, func(p string) bool { return strings.Contains(p, "echo x") }) {
			t.Errorf("%s: it goes on: %q", how, got)
		}
	}
}
