package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// pair runs a handler behind a pipe and returns the agent's end of it, and how
// Serve ended.
func pair(t *testing.T, h Handler) (agent net.Conn, served <-chan error) {
	t.Helper()
	here, there := net.Pipe()
	ended := make(chan error, 1)
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		ended <- Serve(ctx, there, there, h)
		there.Close()
	}()
	t.Cleanup(func() { stop(); here.Close(); there.Close() })
	return here, ended
}

func TestARequestIsDoneAndToldOf(t *testing.T) {
	var asked Request
	conn, served := pair(t, func(_ context.Context, r Request, a *Agent) (any, error) {
		asked = r
		a.Progress(Progress{Volume: "db", Files: 1, Bytes: 2, TotalFiles: 3, TotalBytes: 4, Stored: 5})
		a.Warning(Warning{Volume: "db", Path: `a\012b`, What: "unreadable", Notice: true})
		a.Notice("services stood still")
		return map[string]int{"files": 7}, nil
	})
	var told []string
	say := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	result, err := Call(t.Context(), conn, Request{Args: []string{"backup", "--stack", "shop"}, Env: []string{"KEY=a\nb"}}, Events{
		Progress: func(p Progress) { say("progress %+v", p) },
		Warning:  func(w Warning) { say("warning %+v", w) },
		Notice:   func(s string) { say("notice %s", s) },
	})
	if err != nil || string(result) != `{"files":7}` {
		t.Fatalf("result %s, %v", result, err)
	}
	want := []string{
		"progress {Volume:db Files:1 Bytes:2 TotalFiles:3 TotalBytes:4 Stored:5}",
		`warning {Volume:db Path:a\012b What:unreadable Notice:true}`, "notice services stood still",
	}
	if !reflect.DeepEqual(told, want) {
		t.Errorf("told %q, want %q", told, want)
	}
	if !slices.Equal(asked.Args, []string{"backup", "--stack", "shop"}) || !slices.Equal(asked.Env, []string{"KEY=a\nb"}) {
		t.Errorf("asked for %+v", asked)
	}
	conn.Close()
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
}

type coded struct{ error }

func (coded) ExitCode() int { return 5 }

func TestAFailureKeepsItsTextAndExitCode(t *testing.T) {
	for want, err := range map[Error]error{
		{"no such volume", 1}: errors.New("no such volume"),
		{"damage", 5}:         fmt.Errorf("%w", coded{errors.New("damage")}),
	} {
		conn, _ := pair(t, func(context.Context, Request, *Agent) (any, error) { return nil, err })
		_, got := Call(t.Context(), conn, Request{}, Events{})
		var e *Error
		if !errors.As(got, &e) || *e != want {
			t.Errorf("%v became %v", err, got)
		}
	}
}

func TestAWorkerThatEndsWithoutAResultIsAnError(t *testing.T) {
	for name, end := range map[string]struct {
		do   func(c net.Conn)
		want error
	}{
		"is gone": {func(c net.Conn) { c.Close() }, ErrGone},
		"babbles": {func(c net.Conn) { io.WriteString(c, "panic: no\n") }, ErrProtocol},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = Serve(t.Context(), there, there, func(context.Context, Request, *Agent) (any, error) {
					end.do(there)
					return 1, nil
				})
				there.Close()
			}()
			if _, err := Call(t.Context(), here, Request{}, Events{}); !errors.Is(err, end.want) {
				t.Errorf("error %v, want %v", err, end.want)
			}
			here.Close()
			<-done
		})
	}
}

func TestACancelReachesTheWorkerAndItsErrorIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, _ := pair(t, func(ctx context.Context, _ Request, _ *Agent) (any, error) {
			cancel()
			<-ctx.Done()
			return nil, fmt.Errorf("read volume db: %w", ctx.Err())
		})
		_, err := Call(ctx, conn, Request{}, Events{})
		var e *Error
		if !errors.As(err, &e) || e.Code != 130 || e.Text != "read volume db: context canceled" {
			t.Errorf("got %v", err)
		}
		conn.Close()
	})
}

func TestAWorkerThatDoesNotEndIsNotWaitedForForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		conn, served := pair(t, func(context.Context, Request, *Agent) (any, error) {
			cancel()
			<-release
			return nil, nil
		})
		began := time.Now()
		_, err := Call(ctx, conn, Request{}, Events{})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, ErrGone) || time.Since(began) != cancelGrace {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
		close(release)
		if err := <-served; !errors.Is(err, ErrGone) {
			t.Errorf("serve: %v", err)
		}
	})
}

func TestARequestThatNobodyReadsCanBeCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := Call(ctx, here, Request{}, Events{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		cancel()
		if _, err := Call(ctx, here, Request{}, Events{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("called when it was over: %v", err)
		}
	})
}

func TestAnAgentThatGoesAwayEndsTheWork(t *testing.T) {
	for name, c := range map[string]struct {
		leave func(net.Conn)
		want  error
	}{
		"closes":  {func(c net.Conn) { c.Close() }, ErrGone},
		"babbles": {func(c net.Conn) { io.WriteString(c, "{\"answer\":{},\"cancel\":{}}\n") }, ErrProtocol},
	} {
		here, there := net.Pipe()
		served := make(chan error, 1)
		go func() {
			served <- Serve(t.Context(), there, there, func(ctx context.Context, _ Request, _ *Agent) (any, error) {
				<-ctx.Done()
				if cause := context.Cause(ctx); !errors.Is(cause, c.want) {
					t.Errorf("%s: the work ended by %v, want %v", name, cause, c.want)
				}
				return nil, context.Cause(ctx)
			})
			there.Close()
		}()
		if err := (&writer{w: here}).send(Request{Version: Version}); err != nil {
			t.Fatal(err)
		}
		if name == "babbles" {
			go io.Copy(io.Discard, here)
		}
		c.leave(here)
		if err := <-served; err == nil {
			t.Errorf("%s: serve ended well", name)
		}
		here.Close()
	}
}

func TestWhatIsNotUnderstoodIsRefused(t *testing.T) {
	for name, line := range map[string]string{
		"unknown":  `{"surprise":{}}`,
		"inside":   `{"progress":{"files":1,"bytes":2,"surprise":3}}`,
		"two":      `{"notice":"a","result":1}`,
		"nothing":  `{}`,
		"trailing": `{"notice":"a"} {}`,
		"text":     `Segmentation fault`,
		"empty":    ``,
		"array":    `[]`,
		"long":     strings.Repeat(" ", maxLine) + "{}",
	} {
		var m fromWorker
		if err := newLines(strings.NewReader(line + "\n")).next(&m); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var m fromWorker
	if err := newLines(strings.NewReader(`{"notice":"a"}`)).next(&m); !errors.Is(err, ErrGone) {
		t.Errorf("a cut line: %v", err)
	}
	conn, served := pair(t, func(context.Context, Request, *Agent) (any, error) { return nil, nil })
	go io.Copy(io.Discard, conn)
	io.WriteString(conn, `{"version":99,"args":[]}`+"\n")
	if err := <-served; !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("another version: %v", err)
	}
}

func TestAResultThatIsTooLongIsAnError(t *testing.T) {
	conn, served := pair(t, func(context.Context, Request, *Agent) (any, error) { return strings.Repeat("x", maxLine), nil })
	if _, err := Call(t.Context(), conn, Request{}, Events{}); !errors.Is(err, ErrGone) {
		t.Errorf("call: %v", err)
	}
	if err := <-served; !errors.Is(err, ErrProtocol) {
		t.Errorf("serve: %v", err)
	}
}

// Whatever a worker sends, it is refused, or means the same when it is sent again.
func FuzzMessages(f *testing.F) {
	for _, seed := range []string{
		`{"progress":{"files":1,"bytes":2}}`, `{"warning":{"volume":"db","path":"a","what":"b"}}`, `{"notice":""}`,
		`{"result":null}`, `{"result":{"a":1}}`, `{"error":{"text":"no","code":4}}`, `{"notice":"a","result":1}`, `{}`, `[`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var m, again fromWorker
		if decode(line, &m) != nil {
			return
		}
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := decode(out, &again); err != nil {
			t.Fatalf("%s became %s: %v", line, out, err)
		}
		second, err := json.Marshal(again)
		if err != nil || string(second) != string(out) {
			t.Fatalf("%s, then %s", out, second)
		}
	})
}
