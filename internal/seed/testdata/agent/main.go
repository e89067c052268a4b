// Command agent is what the tests of internal/seed run in containers: it seeds the volumes below
// /volumes as `backupd serve` does at its start, and prints what came of it as JSON.
// As `agent app` it is a service of the project, which writes into its volume.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/disko/backupd/internal/seed"
	"github.com/disko/backupd/internal/seed/snapshots"
	"github.com/disko/backupd/internal/snapshot"
	"github.com/disko/backupd/internal/store/storetest"
	"github.com/disko/backupd/internal/targets/directory"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if len(os.Args) > 1 && os.Args[1] == "app" {
		return os.WriteFile("/data/written-by-app", []byte("precious"), 0o644)
	}
	o := seed.Options{
		Stack: "shop", StateDir: "/state", Mode: seed.Mode(os.Getenv("MODE")), Window: seed.OwnWindow(),
		Tell: func(line string) { fmt.Fprintln(os.Stderr, line) },
	}
	if os.Getenv("STATE") != "" {
		o.StateDir = os.Getenv("STATE")
	}
	if n := os.Getenv("NAMED"); n != "" {
		o.Named = strings.Split(n, ",")
	}
	if v := os.Getenv("VETO"); v != "" {
		o.Veto = veto(v)
	}
	dirs, err := os.ReadDir("/volumes")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		o.Volumes = append(o.Volumes, seed.Volume{Name: d.Name(), Path: filepath.Join("/volumes", d.Name())})
	}
	source := &snapshots.Source{Stack: "shop", Open: open}
	defer source.Close()
	o.Source = source
	call := seed.Run
	if os.Getenv("BROKEN") != "" { // settings that make no sense
		call = seed.Note
	}
	result, err := call(ctx, o)
	id, _ := seed.OwnContainerID()
	out := struct {
		*seed.Result
		Container string
		Window    seed.Window
	}{result, id, o.Window}
	if jerr := json.NewEncoder(os.Stdout).Encode(out); jerr != nil {
		return jerr
	}
	return err
}

// open opens the repository; HANG=n stops for ever after n reads of packs, the first time.
func open(ctx context.Context) (*snapshot.Repository, error) {
	if os.Getenv("UNREACHABLE") != "" {
		return nil, errors.New("connect to the target: connection refused")
	}
	target, err := directory.Open("/target")
	if err != nil {
		return nil, err
	}
	st := &storetest.Faulty{Writer: target}
	const hung = "/state/hung"
	if n, err := strconv.Atoi(os.Getenv("HANG")); err == nil && os.Mkdir(hung, 0o700) == nil {
		left := make(chan struct{}, n)
		st.Hook = func(op, key string, _ int) storetest.Fault {
			if op != storetest.OpGet || !strings.Contains(key, "/packs/") {
				return storetest.None
			}
			select {
			case left <- struct{}{}:
				return storetest.None
			default:
			}
			return storetest.CallBefore(func() {
				fmt.Println("hanging")
				time.Sleep(time.Hour) // until it is killed
			})
		}
	}
	return snapshot.Open(ctx, st, snapshot.Options{})
}

// veto is what an engine would say of each volume: "db:app,worker".
type veto string

func (v veto) EverStarted(_ context.Context, vol seed.Volume) ([]string, error) {
	name, who, _ := strings.Cut(string(v), ":")
	if name != vol.Name {
		return nil, nil
	}
	return strings.Split(who, ","), nil
}
