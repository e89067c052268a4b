package snapshot

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"github.com/disko/backupd/internal/store/storetest"
)

// What a clone takes is no snapshot that others are seeded from, unless it was
// meant to be.
func TestLatestIsTheNewestThatLeads(t *testing.T) {
	for _, c := range []*Credentials{nil, {Passphrase: "clones"}} {
		l := newLab(t)
		l.credentials = c
		ctx := context.Background()
		st := storetest.NewMemory()
		r, err := Ensure(ctx, st, Options{CacheDir: l.cache(), TrustDir: l.root + "/trust", Credentials: c})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		take := func(o BackupOptions) string {
			o.Stack, o.Volumes = "shop", l.sources()
			s, err := r.Backup(ctx, st, o)
			if err != nil {
				t.Fatal(err)
			}
			return s.ID
		}
		want := func(name, id string) {
			t.Helper()
			if m, err := r.Find(ctx, "shop", name); err != nil || m.ID() != id {
				t.Errorf("%s: %v, %v; want %s", name, m, err, id)
			}
		}
		seed := strings.Repeat("ab", 16)
		early := take(BackupOptions{Origin: "laptop", Seeded: seed})
		if _, err := r.Find(ctx, "shop", "latest"); !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "clones") || !strings.Contains(err.Error(), "origin:laptop") {
			t.Errorf("with a clone's snapshots only: %v", err)
		}
		want("origin:laptop", early)
		server := take(BackupOptions{Origin: "server"})
		want("latest", server)
		clone := take(BackupOptions{Origin: "laptop", Seeded: server})
		want("latest", server)
		want("", server)
		want("origin:laptop", clone)
		want("origin:server", server)
		want(clone, clone)
		tagged := take(BackupOptions{Origin: "laptop", Seeded: server, Tags: []string{"demo"}})
		want("latest", tagged)
		want("demo", tagged)
		rebuilt := take(BackupOptions{Origin: "new-server", Seeded: server, Trigger: "schedule"})
		want("latest", rebuilt)
		last := take(BackupOptions{Origin: "laptop", Seeded: server})
		want("latest", rebuilt)
		if m, err := r.Find(ctx, "shop", last); err != nil || m.Parent != rebuilt {
			t.Errorf("the parent of %s is %v, %v; want the newest of any kind, %s", last, m, err, rebuilt)
		}
		if _, err := r.Find(ctx, "shop", "origin:nobody"); !errors.Is(err, ErrNoSnapshot) || !strings.Contains(err.Error(), "origin:server") {
			t.Errorf("an origin that is not there: %v", err)
		}
	}
}

func TestAManifestTellsWhatTheStackWas(t *testing.T) {
	l := newLab(t)
	ctx := context.Background()
	st := storetest.NewMemory()
	r, err := Ensure(ctx, st, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sources := l.sources()
	sources[1].Driver = "local"
	sources[1].Options = map[string]string{"type": "nfs", "o": "addr=nas,rw", "device": ":/export"}
	sources[1].Labels = map[string]string{"com.docker.compose.volume": "data"}
	about := &About{Project: "shop", Services: []Service{{"app", "shop/app:1", "sha256:0123"}, {Name: "db"}}}
	s, err := r.Backup(ctx, st, BackupOptions{Stack: "shop", Volumes: sources, About: about, Seeded: strings.Repeat("0f", 16)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Find(ctx, "shop", s.ID)
	if err != nil {
		t.Fatal(err)
	}
	v := m.Volume(sources[1].Name)
	if !reflect.DeepEqual(m.About, about) || v.Driver != "local" || !maps.Equal(v.Options, sources[1].Options) || !maps.Equal(v.Labels, sources[1].Labels) || v.Dump {
		t.Errorf("%+v, %+v", m.About, v)
	}
	if _, err := r.Backup(ctx, st, BackupOptions{Stack: "shop", Volumes: sources, Seeded: "latest"}); !errors.Is(err, ErrUsage) {
		t.Errorf("seeded from what is no id: %v", err)
	}
}
