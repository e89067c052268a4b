package testservers

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTwoNFSServersKeepTheirFilesOverAKill(t *testing.T) {
	a, b := Ganesha(t, NFSOptions{}), Ganesha(t, NFSOptions{RootSquash: true})
	if a.Port == b.Port || a.MountPort == b.MountPort || a.Dir == b.Dir {
		t.Error("they share something")
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Kill(t)
	if err := nfsAnswers(a.Host, a.Port, nfsProgramNumber, 3); err == nil {
		t.Error("it answers after the kill")
	}
	if err := nfsAnswers(b.Host, b.Port, nfsProgramNumber, 3); err != nil {
		t.Errorf("the other one: %v", err)
	}
	a.Restart(t)
	if got, err := os.ReadFile(filepath.Join(a.Dir, "file")); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	a.Pause(t)
	if err := nfsAnswers(a.Host, a.Port, nfsProgramNumber, 3); err == nil {
		t.Error("it answers while it is paused")
	}
	a.Resume(t)
	if err := nfsAnswers(a.Host, a.Port, nfsProgramNumber, 3); err != nil {
		t.Error(err)
	}
}
