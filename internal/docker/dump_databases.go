package docker

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/container"
)

// Found is a database that runs.
type Found struct {
	Service   string
	Kind      Kind
	Container Container
}

// servers are the names of programs that are databases.
var servers = map[string]Kind{
	"postgres": Postgres, "postmaster": Postgres, "mysqld": MySQL, "mariadbd": MariaDB, "mongod": MongoDB,
	"redis-server": Redis, "valkey-server": Redis, "keydb-server": Redis,
}

// Databases finds the databases of a stack by the programs that run in its
// containers: an image may have any name.
func (e *Engine) Databases(ctx context.Context, s *Stack) ([]Found, error) {
	var out []Found
	for _, svc := range s.Services {
		for _, c := range svc.Containers {
			if c.State != "running" {
				continue
			}
			kinds, err := e.databasesIn(ctx, c)
			if err != nil {
				return out, err
			}
			for _, kind := range kinds {
				found := Found{Service: svc.Name, Kind: kind, Container: c}
				if !slices.ContainsFunc(out, func(f Found) bool { return f.Service == found.Service && f.Kind == kind }) {
					out = append(out, found)
				}
			}
		}
	}
	return out, nil
}

// databasesIn are the databases that run in a container; none where it has ended.
func (e *Engine) databasesIn(ctx context.Context, c Container) ([]Kind, error) {
	top, err := e.processes(ctx, c.ID)
	if cerrdefs.IsNotFound(err) || cerrdefs.IsConflict(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the processes of container %s: %w", c.Name, explainAccess(err))
	}
	return recognise(top), nil
}

// processes lists what runs in a container. Without control groups the engine
// cannot: then it is what the container was started with, word by word, because
// an image's entrypoint ends in the program that it is for.
func (e *Engine) processes(ctx context.Context, id string) (container.TopResponse, error) {
	if !e.NoCgroups {
		return e.api.ContainerTop(ctx, id, nil)
	}
	c, err := e.api.ContainerInspect(ctx, id)
	if err != nil {
		return container.TopResponse{}, err
	}
	top := container.TopResponse{Titles: []string{"CMD"}}
	for _, arg := range append([]string{c.Path}, c.Args...) {
		for word := range strings.FieldsSeq(arg) { // sh -c "exec postgres -D ..."
			top.Processes = append(top.Processes, []string{word})
		}
	}
	return top, nil
}

// recognise reads a list of processes.
func recognise(top container.TopResponse) []Kind {
	column := slices.IndexFunc(top.Titles, func(t string) bool { return t == "CMD" || t == "COMMAND" || t == "ARGS" })
	if column < 0 {
		return nil
	}
	var out []Kind
	for _, row := range top.Processes {
		if column >= len(row) {
			continue
		}
		words := strings.Fields(row[column])
		if len(words) == 0 {
			continue
		}
		// "/usr/lib/postgresql/17/bin/postgres", "postgres: checkpointer", "redis-server *:6379"
		name := strings.TrimSuffix(words[0][strings.LastIndexByte(words[0], '/')+1:], ":")
		if kind, ok := servers[name]; ok && !slices.Contains(out, kind) {
			out = append(out, kind)
		}
	}
	return out
}

// Unprotected says which databases would be copied while they write: neither
// made to stand still nor dumped.
func Unprotected(p *Plan, found []Found) []string {
	var out []string
	for _, f := range found {
		if !slices.Contains(p.Writers, f.Service) || p.Quiesced(f.Service) || p.Policies[f.Service].Dump.Set() {
			continue
		}
		out = append(out, fmt.Sprintf("service %s runs a database (%s) that keeps writing while its files are read: what is restored may not start; "+
			"label it %s=stop or pause, or %s=%s", f.Service, f.Kind, labelQuiesce, labelDump, f.Kind))
	}
	return out
}

// dataFiles lie in the data directory of a database.
var dataFiles = map[string]Kind{
	"PG_VERSION": Postgres, "ibdata1": MySQL, "WiredTiger": MongoDB, "dump.rdb": Redis, "appendonlydir": Redis, "appendonly.aof": Redis,
}

// dataDepth is how deep below a volume's root a data directory is looked for:
// PostgreSQL 18 has 18/docker, Debian 17/main.
const dataDepth = 2

// DatabaseIn finds the data directory of a database in a volume, by its files, for
// where no engine says what runs. Redis's kind of file is also Valkey's,
// MySQL's also MariaDB's.
func DatabaseIn(volume fs.FS) ([]Kind, error) {
	var out []Kind
	err := fs.WalkDir(volume, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			if name == "." {
				return err
			}
			return fs.SkipDir // what may not be read, or is gone
		}
		if kind, ok := dataFiles[path.Base(name)]; ok && !slices.Contains(out, kind) {
			out = append(out, kind)
		}
		if d.IsDir() && name != "." && strings.Count(name, "/") >= dataDepth {
			return fs.SkipDir
		}
		return nil
	})
	return out, err
}
