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
	conn, served := pair(t, func(ctx context.Context, r Request, a *Agent) (any, error) {
		asked = r
		a.Progress(Progress{Volume: "db", Files: 1, Bytes: 2, TotalFiles: 3, TotalBytes: 4, Stored: 5})
		a.Warning(Warning{Volume: "db", Path: `a\012b`, What: "unreadable", Notice: true})
		if err := a.Freeze(ctx); err != nil {
			return nil, err
		}
		a.Notice("frozen")
		return map[string]int{"files": 7}, a.Thaw(ctx)
	})
	var told []string
	say := func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) }
	result, err := Call(t.Context(), conn, Request{Args: []string{"backup", "--stack", "shop"}, Env: []string{"KEY=a\nb"}}, Events{
		Progress: func(p Progress) { say("progress %+v", p) },
		Warning:  func(w Warning) { say("warning %+v", w) },
		Notice:   func(s string) { say("notice %s", s) },
		Freeze:   func(context.Context) error { say("freeze"); return nil },
		Thaw:     func(context.Context) error { say("thaw"); return nil },
	})
	if err != nil || string(result) != `{"files":7}` {
		t.Fatalf("result %s, %v", result, err)
	}
	want := []string{
		"progress {Volume:db Files:1 Bytes:2 TotalFiles:3 TotalBytes:4 Stored:5}",
		`warning {Volume:db Path:a\012b What:unreadable Notice:true}`, "freeze", "notice frozen", "thaw",
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

func TestAFreezeThatFailedIsTheWorkersError(t *testing.T) {
	conn, _ := pair(t, func(ctx context.Context, _ Request, a *Agent) (any, error) { return nil, a.Freeze(ctx) })
	_, err := Call(t.Context(), conn, Request{}, Events{
		Freeze: func(context.Context) error { return errors.New("service db does not stop") },
		Thaw:   func(context.Context) error { t.Error("thawed what was never frozen"); return nil },
	})
	if err == nil || err.Error() != "service db does not stop" {
		t.Errorf("got %v", err)
	}
	conn, _ = pair(t, func(ctx context.Context, _ Request, a *Agent) (any, error) { return nil, a.Freeze(ctx) })
	if _, err := Call(t.Context(), conn, Request{}, Events{}); err == nil || !strings.Contains(err.Error(), "nobody can") {
		t.Errorf("got %v", err)
	}
}

func TestServicesAreThawedWhateverBecomesOfTheWorker(t *testing.T) {
	for name, end := range map[string]func(ctx context.Context, a *Agent, conn net.Conn) (any, error){
		"forgets": func(context.Context, *Agent, net.Conn) (any, error) { return 1, nil },
		"fails":   func(context.Context, *Agent, net.Conn) (any, error) { return nil, errors.New("no") },
		"is gone": func(_ context.Context, _ *Agent, c net.Conn) (any, error) { c.Close(); return nil, nil },
		"babbles": func(_ context.Context, _ *Agent, c net.Conn) (any, error) {
			io.WriteString(c, "panic: no\n")
			return nil, nil
		},
		"is asked": func(ctx context.Context, a *Agent, _ net.Conn) (any, error) { return nil, a.Thaw(ctx) },
	} {
		t.Run(name, func(t *testing.T) {
			here, there := net.Pipe()
			defer here.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = Serve(t.Context(), there, there, func(ctx context.Context, _ Request, a *Agent) (any, error) {
					if err := a.Freeze(ctx); err != nil {
						t.Error(err)
					}
					return end(ctx, a, there)
				})
				there.Close()
			}()
			frozen := 0
			_, err := Call(t.Context(), here, Request{}, Events{
				Freeze: func(context.Context) error { frozen++; return nil },
				Thaw:   func(context.Context) error { frozen--; return nil },
			})
			here.Close()
			<-done
			if frozen != 0 {
				t.Errorf("%d freezes are left", frozen)
			}
			if ok := name == "forgets" || name == "is asked"; ok != (err == nil) {
				t.Errorf("error %v", err)
			}
			if name == "is gone" && !errors.Is(err, ErrGone) || name == "babbles" && !errors.Is(err, ErrProtocol) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestACancelReachesTheWorkerAndItsAnswerIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn, _ := pair(t, func(ctx context.Context, _ Request, a *Agent) (any, error) {
			if err := a.Freeze(ctx); err != nil {
				return nil, err
			}
			cancel()
			<-ctx.Done()
			// Cancelled, it may still ask for a thaw and will be heard.
			if err := a.Thaw(context.WithoutCancel(ctx)); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("read volume db: %w", ctx.Err())
		})
		thawed := false
		_, err := Call(ctx, conn, Request{}, Events{
			Freeze: func(context.Context) error { return nil },
			Thaw:   func(ctx context.Context) error { thawed = true; return ctx.Err() },
		})
		var e *Error
		if !errors.As(err, &e) || e.Code != 130 || e.Text != "read volume db: context canceled" || !thawed {
			t.Errorf("got %v, thawed %v", err, thawed)
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
	for name, leave := range map[string]func(net.Conn){
		"closes":  func(c net.Conn) { c.Close() },
		"babbles": func(c net.Conn) { io.WriteString(c, "{\"answer\":{},\"cancel\":{}}\n") },
	} {
		here, there := net.Pipe()
		served := make(chan error, 1)
		go func() {
			served <- Serve(t.Context(), there, there, func(ctx context.Context, _ Request, a *Agent) (any, error) {
				if name == "closes" {
					err := a.Freeze(ctx)
					if !errors.Is(err, ErrGone) {
						t.Errorf("freeze: %v", err)
					}
					return nil, err
				}
				<-ctx.Done()
				return nil, context.Cause(ctx)
			})
			there.Close()
		}()
		if err := (&writer{w: here}).send(Request{Version: Version}); err != nil {
			t.Fatal(err)
		}
		if name == "closes" {
			var m fromWorker
			if err := newLines(here).next(&m); err != nil || m.Freeze == nil {
				t.Fatal(m, err)
			}
		} else {
			go io.Copy(io.Discard, here)
		}
		leave(here)
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
		"two":      `{"freeze":{},"thaw":{}}`,
		"nothing":  `{}`,
		"trailing": `{"freeze":{}} {}`,
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
	if err := newLines(strings.NewReader(`{"freeze":{}}`)).next(&m); !errors.Is(err, ErrGone) {
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
		`{"freeze":{}}`, `{"thaw":{}}`, `{"result":null}`, `{"result":{"a":1}}`, `{"error":{"text":"no","code":4}}`, `{"freeze":{},"thaw":{}}`, `{}`, `[`,
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
