package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// tool is a program that keeps a repository. All that it writes lies below dir:
// the repository in dir/repo, caches and state beside it.
type tool struct {
	name    string
	init    func(dir string) []command
	backup  func(dir, src string) command
	restore func(dir, out string) command // nil: not measured
	// at is backup with a given time of the snapshot; nil: cannot.
	at func(dir, src string, t time.Time) command
	// prune forgets all but keep, and frees the space; nil: cannot.
	prune func(dir string, k keep) command
	// act is any other command of ours; nil for others.
	act func(dir, verb string, more ...string) command
}

func repo(dir string) string { return filepath.Join(dir, "repo") }

const (
	stackName  = "bench"
	volumeName = "data"
)

func backupd(binary string) tool {
	base := func(dir, verb string) []string {
		return []string{binary, verb, "--target", repo(dir), "--stack", stackName, "--state-dir", filepath.Join(dir, "state"), "--quiet"}
	}
	return tool{
		name: "backupd",
		init: func(string) []command { return nil },
		backup: func(dir, src string) command {
			return command{args: append(base(dir, "backup"), "--json", "--volume", volumeName+"="+src)}
		},
		restore: func(dir, out string) command {
			return command{args: append(base(dir, "restore"), "--volume", volumeName+"="+out)}
		},
		act: func(dir, verb string, more ...string) command {
			return command{args: append(base(dir, verb), more...)}
		},
	}
}

// installed gives those of the peers that are in PATH.
func installed(names []string) []tool {
	var found []tool
	for _, t := range []tool{restic(), borg(), kopia()} {
		if _, err := exec.LookPath(t.name); err == nil && slices.Contains(names, t.name) {
			found = append(found, t)
		}
	}
	return found
}

// restic's repositories are always encrypted. Its own compression is used
// where it has it (0.14 and later).
func restic() tool {
	in := func(dir string, args ...string) command {
		return command{
			args: append([]string{"restic", "--quiet", "--repo", repo(dir), "--cache-dir", filepath.Join(dir, "cache")}, args...),
			env:  []string{"RESTIC_PASSWORD=bench", "RESTIC_PROGRESS_FPS="},
		}
	}
	backup := func(dir, src string, args ...string) command {
		c := in(dir, append([]string{"backup", "--host", "bench", "."}, args...)...)
		c.dir = src
		return c
	}
	return tool{
		name: "restic",
		init: func(dir string) []command {
			if help, _ := exec.Command("restic", "init", "--help").Output(); strings.Contains(string(help), "--repository-version") {
				return []command{in(dir, "init", "--repository-version", "2")}
			}
			return []command{in(dir, "init")}
		},
		backup:  func(dir, src string) command { return backup(dir, src) },
		restore: func(dir, out string) command { return in(dir, "restore", "latest", "--target", out) },
		at: func(dir, src string, t time.Time) command {
			return backup(dir, src, "--time", t.Format(time.DateTime))
		},
		prune: func(dir string, k keep) command {
			return in(dir, "forget", "--prune", "--max-unused", "0",
				"--keep-daily", fmt.Sprint(k.daily), "--keep-weekly", fmt.Sprint(k.weekly), "--keep-monthly", fmt.Sprint(k.monthly))
		},
	}
}

func borg() tool {
	in := func(dir string, args ...string) command {
		return command{
			args: append([]string{"borg"}, args...),
			env:  []string{"BORG_REPO=" + repo(dir), "BORG_BASE_DIR=" + dir, "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK=yes"},
		}
	}
	return tool{
		name: "borg",
		init: func(dir string) []command { return []command{in(dir, "init", "-e", "none")} },
		backup: func(dir, src string) command {
			c := in(dir, "create", "-C", "zstd,3", "::{now:%Y%m%d%H%M%S.%f}", ".")
			c.dir = src
			return c
		},
		restore: func(dir, out string) command {
			c := shell(`borg extract "::$(borg list --short --last 1)"`)
			c.dir, c.env = out, in(dir).env
			return c
		},
	}
}

func kopia() tool {
	in := func(dir string, args ...string) command {
		return command{
			args: append([]string{"kopia", "--no-progress"}, args...),
			env: []string{
				"KOPIA_CONFIG_PATH=" + filepath.Join(dir, "config"), "KOPIA_CACHE_DIRECTORY=" + filepath.Join(dir, "cache"),
				"KOPIA_LOG_DIR=" + filepath.Join(dir, "log"), "KOPIA_PASSWORD=bench", "KOPIA_CHECK_FOR_UPDATES=false",
			},
		}
	}
	return tool{
		name: "kopia",
		init: func(dir string) []command {
			return []command{
				in(dir, "repository", "create", "filesystem", "--path", repo(dir)),
				in(dir, "policy", "set", "--global", "--compression=zstd-fastest"),
			}
		},
		backup: func(dir, src string) command { return in(dir, "snapshot", "create", src) },
	}
}

// fresh empties dir and makes a new repository in it.
func (b *bench) fresh(ctx context.Context, t tool, dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, c := range t.init(dir) {
		if _, _, err := b.measure(ctx, c); err != nil {
			return err
		}
	}
	return nil
}

// stored is the size of all files below dir.
func stored(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	return bytes, err
}
