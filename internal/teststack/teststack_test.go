package teststack

import (
	"context"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
)

func TestSocketProxyForbidsWhatIsNotAllowed(t *testing.T) {
	p := NewSocketProxy(t, ReadOnly)
	for host, client := range map[string]*http.Client{
		"http://" + strings.TrimPrefix(p.TCP, "tcp://"): {},
		"http://docker": {Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", p.Socket)
		}}},
	} {
		get, err := client.Get(host + "/v1.41/info")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(get.Body)
		get.Body.Close()
		if err != nil || get.StatusCode != http.StatusOK || !strings.Contains(string(body), `"ServerVersion"`) {
			t.Errorf("GET /info: %v %v %s", get.Status, err, body)
		}
		post, err := client.Post(host+"/v1.41/containers/nobody/stop", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		post.Body.Close()
		if post.StatusCode != http.StatusForbidden {
			t.Errorf("POST: %v", post.Status)
		}
		client.CloseIdleConnections()
	}
	if want := "POST /containers/nobody/stop"; !slices.Contains(p.Denied(), want) {
		t.Errorf("denied: %v, want %s", p.Denied(), want)
	}
}

func TestNamesAreNeverTheSame(t *testing.T) {
	if a, b := Unique("x"), Unique("x"); a == b || !strings.HasPrefix(a, "x-") || strings.ToLower(a) != a {
		t.Errorf("%s %s", a, b)
	}
}
