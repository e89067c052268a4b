package docker

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"
)

// free returns an address where nobody listens.
func free(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	return ln.Addr().String()
}

func TestAProxyThatListensLateIsWaitedFor(t *testing.T) {
	l := newLab(t)
	engine, _ := l.proxy(nil)
	address := free(t)
	t.Setenv("DOCKER_HOST", "tcp://"+address)
	var told []string
	e, err := Connect(t.Context(), func(text string) { // after the first refusal
		told = append(told, text)
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Error(err)
			return
		}
		s := &http.Server{Handler: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimPrefix(engine, "tcp://")})}
		go s.Serve(ln)
		t.Cleanup(func() { s.Close() })
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if e.ID != l.ID || len(told) != 1 || !strings.Contains(told[0], "tcp://"+address) || !strings.Contains(told[0], "30s") {
		t.Errorf("engine %q; it told %q", e.ID, told)
	}
}

func TestAnEngineThatDoesNotListenIsAnErrorThatSaysWhatToDo(t *testing.T) {
	for host, waits := range map[string]bool{"tcp://" + free(t): true, "unix:///run/backupd-absent.sock": false} {
		t.Setenv("DOCKER_HOST", host)
		waited := false
		_, err := connectStarting(t.Context(), host, time.Millisecond, func(string) { waited = true })
		if err == nil || !strings.Contains(err.Error(), host) || !strings.Contains(err.Error(), "unset DOCKER_HOST") {
			t.Errorf("%s: %v", host, err)
		}
		if waited != waits {
			t.Errorf("%s: waited for it is %v", host, waited)
		}
	}
}

func TestANameWithoutAnAddressIsOneThatMayGetOne(t *testing.T) {
	dns := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "engine", IsNotFound: true}}
	if !notListening(fmt.Errorf("error during connect: %w", &url.Error{Op: "Get", Err: dns})) {
		t.Error("a service without a container yet is not waited for")
	}
	for _, err := range []error{errors.New("malformed HTTP response"), &net.OpError{Op: "read", Err: errors.New("connection reset")}} {
		if notListening(err) {
			t.Errorf("%v is waited for, though somebody listens", err)
		}
	}
}
