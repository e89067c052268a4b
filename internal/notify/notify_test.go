package notify

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/disko/backupd/internal/runs"
)

// inbox is a server that keeps what it is sent.
type inbox struct {
	*httptest.Server
	mu   sync.Mutex
	got  []string
	fail int // how many requests are refused first
}

func newInbox(t *testing.T) *inbox {
	b := &inbox{}
	b.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.fail > 0 {
			b.fail--
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		b.got = append(b.got, r.URL.RequestURI()+" "+string(body))
	}))
	t.Cleanup(b.Close)
	return b
}

func (b *inbox) messages() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]string(nil), b.got...)
}

func (b *inbox) address() string {
	return "generic://" + strings.TrimPrefix(b.URL, "http://") + "/hook?disabletls=yes"
}

func teller(t *testing.T, s Settings) *Teller {
	t.Helper()
	tell, err := New(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return tell
}

func run(o runs.Outcome) *runs.Run {
	r := &runs.Run{ID: "0123456789abcdef", Kind: runs.Backup, Policy: "nightly", Stack: "shop", Outcome: o}
	if o == runs.Failed {
		r.Error = "target /backups: no space left; free space"
	}
	return r
}

func TestFailureIsToldOnceAndThenRecovery(t *testing.T) {
	b := newInbox(t)
	now := time.Date(2026, 5, 1, 2, 0, 0, 0, time.UTC)
	state := filepath.Join(t.TempDir(), "told.json")
	s := Settings{URLs: []string{b.address()}, StateFile: state, Now: func() time.Time { return now }}
	tell := teller(t, s)
	tell.Ended(run(runs.Done), nil) // success is not asked for
	tell.Ended(run(runs.Failed), run(runs.Done))
	now = now.Add(time.Hour)
	tell.Ended(run(runs.Failed), run(runs.Failed))
	tell.Close(t.Context())
	tell = teller(t, s) // a restart
	now = now.Add(time.Hour)
	tell.Ended(run(runs.Failed), run(runs.Failed))
	now = now.Add(23 * time.Hour)
	tell.Ended(run(runs.Failed), run(runs.Failed)) // the next night
	tell.Ended(run(runs.Done), run(runs.Failed))
	tell.Close(t.Context())
	got := b.messages()
	if len(got) != 3 {
		t.Fatalf("%d messages came: %q", len(got), got)
	}
	for i, want := range []string{"no space left; free space", "no space left", "Snapshot"} {
		if i == 2 {
			want = "It took"
		}
		if !strings.Contains(got[i], want) {
			t.Errorf("message %d is %q", i, got[i])
		}
	}
}

func TestAnInterruptedRunIsNoNews(t *testing.T) {
	if m, ok := OfRun(run(runs.Interrupted), nil); ok {
		t.Errorf("it is told: %+v", m)
	}
}

func TestAlarmsAreToldOnceUntilTheyEnd(t *testing.T) {
	b := newInbox(t)
	tell := teller(t, Settings{URLs: []string{b.address()}})
	for range 5 {
		tell.Alarm("stale", "shop", "no good snapshot", "none since Monday")
	}
	tell.Clear("stale", "shop", "snapshots are taken again")
	tell.Clear("stale", "shop", "snapshots are taken again")
	tell.Close(t.Context())
	if got := b.messages(); len(got) != 2 || !strings.Contains(got[0], "none since Monday") || !strings.Contains(got[1], "taken again") {
		t.Errorf("messages: %q", got)
	}
}

func TestPingsTellStartSuccessAndFailure(t *testing.T) {
	b := newInbox(t)
	tell := teller(t, Settings{Ping: b.URL + "/ping/uuid"})
	r := run(runs.Failed)
	tell.Started(r)
	tell.Ended(r, nil)
	tell.Ended(run(runs.Warnings), r)
	byHand := run(runs.Done)
	byHand.Policy = ""
	tell.Ended(byHand, nil)
	tell.Close(t.Context())
	got := b.messages()
	want := []string{"/ping/uuid/start?rid=01234567-89ab-cdef-0000-000000000000 ", "/ping/uuid/fail?rid=", "/ping/uuid?rid="}
	if len(got) != len(want) {
		t.Fatalf("pings: %q", got)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("ping %d is %q, not %q", i, got[i], want[i])
		}
	}
	if !strings.Contains(got[1], "no space left") {
		t.Errorf("the failure has no log: %q", got[1])
	}
}

func TestWhatCannotBeSentIsTriedAgainAndThenLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		tell, err := New(t.Context(), Settings{Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		tries, lost := map[string]int{}, []string{}
		for _, name := range []string{"late", "never"} {
			tell.enqueue(tell.pings, job{name, func(context.Context) error {
				if tries[name]++; name == "late" && tries[name] == 3 {
					return nil
				}
				return errors.New("no way")
			}, func() { lost = append(lost, name) }})
		}
		begin := time.Now()
		tell.Close(t.Context())
		if tries["late"] != 3 || tries["never"] < 5 || time.Since(begin) > pingPatience+time.Minute {
			t.Errorf("tries: %v in %s", tries, time.Since(begin))
		}
		if !slices.Equal(lost, []string{"never"}) {
			t.Errorf("lost: %q", lost)
		}
		if n := strings.Count(log.String(), `msg="message not sent"`); n != 1 {
			t.Errorf("%d messages are logged as lost:\n%s", n, &log)
		}
	})
}

func TestAMessageOutlastsAnEveningWithoutNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell, err := New(t.Context(), Settings{})
		if err != nil {
			t.Fatal(err)
		}
		begin, arrived := time.Now(), time.Duration(0)
		dead, alive := tell.lane(messagePatience), tell.lane(messagePatience)
		tell.lanes = append(tell.lanes, dead, alive)
		tell.enqueue(dead, job{"late", func(context.Context) error {
			if time.Since(begin) < 5*time.Hour {
				return errors.New("no route to host")
			}
			arrived = time.Since(begin)
			return nil
		}, func() { t.Error("it was given up") }})
		tell.enqueue(alive, job{"at once", func(context.Context) error {
			if time.Since(begin) > 0 {
				t.Error("one service waits for another")
			}
			return nil
		}, nil})
		tell.Close(t.Context())
		if arrived < 5*time.Hour || arrived > 5*time.Hour+2*maxPause {
			t.Errorf("it arrived after %s", arrived)
		}
	})
}

func TestWhatWasNeverSentIsToldByTheNextRun(t *testing.T) {
	b, gone := newInbox(t), newInbox(t)
	gone.Close()
	state := filepath.Join(t.TempDir(), "told.json")
	tell := teller(t, Settings{URLs: []string{gone.address()}, StateFile: state})
	tell.Ended(run(runs.Failed), nil)
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	tell.Close(stopped) // the machine is stopped before it could be sent
	tell = teller(t, Settings{URLs: []string{b.address()}, StateFile: state})
	tell.Ended(run(runs.Failed), run(runs.Failed))
	tell.Close(t.Context())
	if got := b.messages(); len(got) != 1 || !strings.Contains(got[0], "no space left") {
		t.Errorf("messages: %q", got)
	}
}

func TestClosingDoesNotWaitForASilentService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tell, err := New(t.Context(), Settings{})
		if err != nil {
			t.Fatal(err)
		}
		tell.enqueue(tell.pings, job{"silent", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, nil})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		begin := time.Now()
		tell.Close(ctx)
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

func TestSecretsOfAddressesAreNotInErrors(t *testing.T) {
	for _, raw := range []string{
		"slack://hook:AAAAAAAAA-BBBBBBBBB-secretsecretsecretsecret@webhook",
		"telegram://110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw@telegram?chats=@hidden",
		"discord://secrettoken@123456789",
		"nonsense://user:secretpassword@host/secretpath",
		"secret token without a scheme",
	} {
		_, err := openService(raw)
		if err == nil {
			err = errors.New(hide(errors.New("post "+raw+": refused, secrettoken"), raw))
		}
		for _, secret := range []string{"secret token", "secrettoken", "secretpassword", "secretpath", "secretsecret", "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw", "hidden"} {
			if strings.Contains(err.Error(), secret) && strings.Contains(raw, secret) {
				t.Errorf("%q is in: %v", secret, err)
			}
		}
	}
}

func TestSettingsAreCheckedAtTheStart(t *testing.T) {
	_, err := New(t.Context(), Settings{URLs: []string{"nowhere", "x://y"}, Template: "{{.Nothing}}", Ping: "ftp://x"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"no ://", "x://...", "Nothing", "https://hc-ping.com"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
	if _, err := parseTemplate("{{.Run.Kind}}"); err == nil || !strings.Contains(err.Error(), "{{if .Run}}") {
		t.Errorf("a template that fails on alarms: %v", err)
	}
}

func TestTemplatesMakeTheText(t *testing.T) {
	b := newInbox(t)
	tell := teller(t, Settings{URLs: []string{b.address()}, Template: "{{.Level}} of {{.Stack}}{{if .Run}} by {{.Run.Policy}}{{end}}"})
	tell.Ended(run(runs.Failed), nil)
	tell.Close(t.Context())
	if got := b.messages(); len(got) != 1 || !strings.Contains(got[0], "failure of shop by nightly") {
		t.Errorf("messages: %q", got)
	}
}
