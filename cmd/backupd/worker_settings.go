package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/disko/backupd/internal/agent"
	"github.com/disko/backupd/internal/worker"
)

// fileFlags are common flags whose values name files that a worker may not see:
// Compose copies secrets from its environment into the agent's container alone,
// and so does a swarm all of them.
var fileFlags = []string{
	"passphrase-file", "agent-key-file", "identity", "recipient",
	"s3-ca-file", "s3-access-key-id-file", "s3-secret-access-key-file", "s3-session-token-file",
	"sftp-identity", "sftp-identity-passphrase-file", "sftp-password-file", "sftp-known-hosts",
}

// notForWorkers are common flags that a worker gets otherwise, or that are the agent's.
var notForWorkers = []string{"target", "stack", "origin", "state-dir", "config", "json", "quiet", "help"}

// workerSettings are the common flags as they count here, whether the command line,
// the environment or the file set them: as variables, and as the files that they name.
func (a *app) workerSettings() (env []string, files []worker.File, err error) {
	if a.common == nil {
		return nil, nil, nil
	}
	a.common.VisitAll(func(f *pflag.Flag) {
		values := slices.DeleteFunc(flagValues(f), func(v string) bool { return v == "" })
		if err != nil || len(values) == 0 || slices.Contains(notForWorkers, f.Name) {
			return
		}
		name := "BACKUPD_" + envName(f.Name)
		if !slices.Contains(fileFlags, f.Name) {
			if f.Changed {
				env = append(env, name+"="+strings.Join(values, ","))
			}
			return
		}
		var named []string
		for _, v := range values {
			if f.Name == "recipient" && isRecipient(v) {
				named = append(named, v)
				continue
			}
			content, rerr := os.ReadFile(v)
			if rerr != nil {
				err = fmt.Errorf("--%s: %w", f.Name, rerr)
				return
			}
			files = append(files, worker.File{Env: name, Content: content})
		}
		if len(named) > 0 {
			env = append(env, name+"="+strings.Join(named, ","))
		}
	})
	if err != nil {
		return nil, nil, err
	}
	for _, name := range agent.SDKFiles {
		path := os.Getenv(name)
		if path == "" {
			continue
		}
		content, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) { // the SDK does without
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", name, err)
		}
		files = append(files, worker.File{Env: name, Content: content})
	}
	return env, files, nil
}

// isRecipient says whether a text is a recipient itself, and not a file of some.
func isRecipient(text string) bool {
	return strings.HasPrefix(text, "age1") || strings.HasPrefix(text, "ssh-") || strings.HasPrefix(text, "AGE-SECRET-KEY-")
}

// receive makes the files of a request, in memory, and names them in the variables that
// they are for.
func receive(files []worker.File) error {
	for _, f := range files {
		name, err := memoryFile(f.Content)
		if err != nil {
			return fmt.Errorf("receive the file for %s: %w", f.Env, err)
		}
		if before := os.Getenv(f.Env); before != "" {
			name = before + "," + name
		}
		if err := os.Setenv(f.Env, name); err != nil {
			return fmt.Errorf("set %s: %w", f.Env, err)
		}
	}
	return nil
}
