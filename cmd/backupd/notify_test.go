package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
)

func TestNotifyTriesEveryAddressAndFailsIfOneDoes(t *testing.T) {
	var got atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.Contains(string(body), "messages arrive") {
			got.Add(1)
		}
		if r.URL.Path == "/broken" {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	defer srv.Close()
	address := func(path string) string {
		return "generic://" + strings.TrimPrefix(srv.URL, "http://") + path + "?disabletls=yes"
	}
	t.Setenv("BACKUPD_STATE_DIR", t.TempDir())
	for _, c := range []struct {
		addresses string
		code      int
		sent      int32
		said      string
	}{
		{address("/one") + " " + address("/two"), exitDone, 2, "2 addresses"},
		{address("/broken") + " " + address("/two"), exitFailed, 2, "not everybody"},
		{"", exitUsage, 0, "nobody to tell"},
	} {
		got.Store(0)
		t.Setenv("BACKUPD_NOTIFY", c.addresses)
		var stdout, stderr bytes.Buffer
		code := run([]string{"notify"}, &stdout, &stderr)
		if code != c.code || got.Load() != c.sent || !strings.Contains(stderr.String(), c.said) {
			t.Errorf("%q: exit %d, %d messages, %s", c.addresses, code, got.Load(), stderr.String())
		}
	}
}
