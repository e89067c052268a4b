package docker

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// What uses a volume whose restore has not ended stays stopped, whatever other
// restore ends meanwhile, in whichever process.
func TestNothingStartsOnHalfARestore(t *testing.T) {
	s := newStage(t)
	one, two := s.volume("one"), s.volume("two")
	db := s.add(part{service: "db", mounts: []string{one + ":/one"}})
	app := s.add(part{service: "app", mounts: []string{two + ":/two", one + ":/one:ro"}, needs: "db:service_started:false"})
	cache := s.add(part{service: "cache", mounts: []string{two + ":/two"}})
	ids := []string{db, app, cache}
	note := filepath.Join(s.state, "restore", s.project+".json")
	stop := func(volume string) *Users {
		t.Helper()
		u, err := s.StopUsers(t.Context(), UsersOptions{Project: s.project, Volumes: []string{volume}, StateDir: s.state})
		s.must(err)
		return u
	}
	start := func(u *Users, whole string, want ...string) {
		t.Helper()
		stay, err := u.Start(t.Context(), []string{whole})
		s.must(err)
		slices.Sort(stay)
		if !slices.Equal(stay, want) {
			t.Errorf("when %q is whole, %q stay stopped, want %q", whole, stay, want)
		}
	}
	u := stop(one)
	s.wantStates("one is restored", ids, "exited", "exited", "running")
	start(u, "", "app", "db") // it ended half way
	start(stop(two), two, "app", "db")
	s.wantStates("two was restored", ids, "exited", "exited", "running")

	// An agent that starts anew, and finds one whole.
	left, err := s.UsersLeft(s.state, s.project)
	s.must(err)
	if got := left.Begun(); !slices.Equal(got, []string{one}) {
		t.Errorf("begun: %q", got)
	}
	start(left, one)
	s.wantStates("one was found whole", ids, "running", "running", "running")
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Errorf("the note is still there: %v", err)
	}
}

// A proxy may let stop pass and not start, or neither: then the volume is in use, and
// nobody is stopped for good.
func TestUsersThatMayNotBeStoppedAreLeftAloneAndSo(t *testing.T) {
	s := newStage(t)
	data := s.volume("data")
	db := s.add(part{service: "db", mounts: []string{data + ":/data"}})
	for permission, allow := range map[string]func(*http.Request) bool{
		"POST /containers/ID/start": func(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, "/start") },
		"POST /containers/ID/stop":  func(r *http.Request) bool { return !strings.HasSuffix(r.URL.Path, "/stop") },
	} {
		_, e := s.proxy(allow)
		_, err := e.StopUsers(t.Context(), UsersOptions{Project: s.project, Volumes: []string{data}, StateDir: s.state})
		if !errors.Is(err, ErrInUse) || Forbidden(err) || !strings.Contains(err.Error(), permission) || !strings.Contains(err.Error(), "docker compose stop db") {
			t.Errorf("without %s: %v", permission, err)
		}
		s.wantStates("refused", []string{db}, "running")
	}
	if _, err := os.Stat(filepath.Join(s.state, "restore")); !os.IsNotExist(err) {
		t.Errorf("something is noted: %v", err)
	}
}
