package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

// Edit is a change to a Compose file that adds a backup service.
type Edit struct {
	File     string // which file is changed
	Old, New []byte
	Service  string   // its name
	Stack    string   // the project's name in the repository, from now on
	Volumes  []string // keys of the volumes that it backs up
	Waiting  []string // services that wait for it from now on
	ByHand   []string // what could not be done, in sentences for the user
}

// errShape: the file is written in a way that is not edited.
var errShape = errors.New("it is written in a way that backupd does not edit")

// AddBackup plans how the project's first file gets a backup service: the
// service with every named volume, depends_on in each service that mounts one,
// and a volume for its state. The file's own text stays as it is, with comments and
// all. The result was read again, and says the same as before but for that.
func (p *Project) AddBackup(ctx context.Context, o Options, image string) (*Edit, error) {
	if len(p.Files) == 0 {
		return nil, fmt.Errorf("add a backup service to project %s: it was not read from a file", p.Name)
	}
	// Names of Compose projects are names of stacks, which end at 128 bytes.
	e := &Edit{File: p.Files[0], Service: "backup", Stack: p.Name[:min(len(p.Name), 128)]}
	fail := func(err error) (*Edit, error) {
		return nil, fmt.Errorf("add a backup service to %s: %w", e.File, err)
	}
	var err error
	if e.Old, err = os.ReadFile(e.File); err != nil {
		return fail(err)
	}
	if p.service(e.Service) != nil {
		e.Service = "backupd"
	}
	if p.service(e.Service) != nil {
		return fail(fmt.Errorf("it has services backup and backupd, and neither is one of backupd's; label the one that is to be it %s: \"true\"", LabelAgent))
	}
	for _, v := range p.Volumes {
		if slices.ContainsFunc(p.Services, func(s Service) bool { return s.mounts(v.Key) }) {
			e.Volumes = append(e.Volumes, v.Key)
		}
	}
	if len(e.Volumes) == 0 {
		return fail(errors.New("no service mounts a named volume, so there is nothing to back up"))
	}
	ed, err := newEditor(e.Old)
	if err != nil {
		return fail(err)
	}
	state := "backup-state"
	for p.volume(state) != nil {
		state += "-2"
	}
	for _, s := range p.Services {
		if !slices.ContainsFunc(e.Volumes, s.mounts) {
			continue
		}
		if err := ed.depend(s, e.Service); err != nil {
			e.ByHand = append(e.ByHand, fmt.Sprintf("service %s mounts a volume and must wait for %s: %v; add \"depends_on: {%s: {condition: service_healthy}}\" to it", s.Name, e.Service, err, e.Service))
			continue
		}
		e.Waiting = append(e.Waiting, s.Name)
	}
	if err := ed.addService(e, image, state); err != nil {
		return fail(fmt.Errorf("%w; add this to its services by hand:\n\n%s", err, e.serviceText(image, state, 2, 2)))
	}
	if err := ed.addVolume(state); err != nil {
		return fail(fmt.Errorf("%w; add the volume %s to it by hand, then run this again", err, state))
	}
	for _, s := range p.Services {
		for _, m := range s.Mounts {
			if m.Type == types.VolumeTypeBind && !m.ReadOnly && !strings.HasSuffix(m.Source, ".sock") {
				e.ByHand = append(e.ByHand, fmt.Sprintf("service %s keeps data in %s, a directory and no volume: to back it up, too, add \"- %s:/volumes/NAME\" to %s", s.Name, m.Source, m.Source, e.Service))
			}
		}
	}
	e.New = ed.text()
	if err := p.sameBut(ctx, o, e); err != nil {
		return fail(fmt.Errorf("the changed file would not say what it should: %w; nothing was changed: add the service by hand", err))
	}
	return e, nil
}

func (p *Project) service(name string) *Service {
	for i := range p.Services {
		if p.Services[i].Name == name {
			return &p.Services[i]
		}
	}
	return nil
}

func (p *Project) volume(key string) *Volume {
	for i := range p.Volumes {
		if p.Volumes[i].Key == key {
			return &p.Volumes[i]
		}
	}
	return nil
}

func (s Service) mounts(key string) bool {
	return slices.ContainsFunc(s.Mounts, func(m Mount) bool { return m.Key == key })
}

// serviceText is the service, indented.
func (e *Edit) serviceText(image, state string, indent, step int) string {
	var b strings.Builder
	line := func(depth int, format string, args ...any) {
		b.WriteString(strings.Repeat(" ", indent+depth*step))
		fmt.Fprintf(&b, format+"\n", args...)
	}
	line(0, "# Takes snapshots of the volumes below /volumes, and fills them where they are")
	line(0, "# new: `docker compose up` in a fresh clone starts the stack with its data.")
	line(0, "%s:", e.Service)
	line(1, "image: %s", image)
	line(1, "restart: unless-stopped")
	line(1, "environment:")
	line(2, "BACKUPD_TARGET: ${BACKUPD_TARGET:?set it in .env, as in s3://bucket/prefix}")
	line(2, "# The stack's name at the target. A clone finds its data by it, whatever the")
	line(2, "# directory or the project is called there.")
	// In quotes, which keep a project called 2024 or null from being no text.
	line(2, "BACKUPD_STACK: %q", e.Stack)
	line(2, "# Empty in a clone, which takes no snapshots by itself. The server's .env has")
	line(2, "# one, as in BACKUPD_SCHEDULE=@daily.")
	line(2, "BACKUPD_SCHEDULE: ${BACKUPD_SCHEDULE:-}")
	line(2, "AWS_ACCESS_KEY_ID: ${AWS_ACCESS_KEY_ID:-}")
	line(2, "AWS_SECRET_ACCESS_KEY: ${AWS_SECRET_ACCESS_KEY:-}")
	line(2, "AWS_REGION: ${AWS_REGION:-us-east-1}")
	line(1, "volumes:")
	for _, v := range e.Volumes {
		line(2, "- %s:/volumes/%s", v, v)
	}
	line(2, "# What it remembers between runs.")
	line(2, "- %s:/var/lib/backupd", state)
	line(2, "# To pause services for the seconds in which their files must stand still.")
	line(2, "# Without this line backups work, and services go on writing meanwhile.")
	line(2, "- /var/run/docker.sock:/var/run/docker.sock")
	return b.String()
}

// editor changes a YAML file as text, at the places that its nodes tell.
type editor struct {
	lines  []string // without their ends
	root   *yaml.Node
	insert map[int][]string // line index -> lines that come before it
	indent int              // of services' names
	step   int
}

func newEditor(text []byte) (*editor, error) {
	if bytes.Contains(text, []byte("\r\n")) {
		return nil, fmt.Errorf("%w: its lines end as on Windows", errShape)
	}
	var documents []*yaml.Node
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var n yaml.Node
		if err := d.Decode(&n); err != nil {
			break // it was read before: this is its end
		}
		documents = append(documents, &n)
	}
	if len(documents) != 1 || len(documents[0].Content) != 1 || documents[0].Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%w: it is not one mapping", errShape)
	}
	e := &editor{root: documents[0].Content[0], insert: map[int][]string{}, step: 2}
	e.lines = strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if e.root.Style&yaml.FlowStyle != 0 {
		return nil, fmt.Errorf("%w: it is in braces", errShape)
	}
	services, _ := e.child(e.root, "services")
	if services == nil || !block(services) || len(services.Content) == 0 {
		return nil, fmt.Errorf("%w: it has no services, or has them in braces", errShape)
	}
	e.indent = services.Content[0].Column - 1
	for i := 1; i < len(services.Content); i += 2 {
		if s := services.Content[i]; block(s) && len(s.Content) > 0 {
			e.step = s.Content[0].Column - 1 - e.indent
			break
		}
	}
	return e, nil
}

func block(n *yaml.Node) bool { return n.Kind == yaml.MappingNode && n.Style&yaml.FlowStyle == 0 }

// child returns the value of a mapping's key, and the key.
func (e *editor) child(n *yaml.Node, key string) (value, keyNode *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1], n.Content[i]
		}
	}
	return nil, nil
}

// end returns the index of the line after a top-level key's block: after its last
// line that is neither blank nor a comment of what follows.
func (e *editor) end(key string) int {
	end := len(e.lines)
	for i := 0; i+3 < len(e.root.Content); i += 2 {
		if e.root.Content[i].Value == key {
			end = e.root.Content[i+2].Line - 1
		}
	}
	for end > 0 {
		l := e.lines[end-1]
		if strings.TrimSpace(l) != "" && !strings.HasPrefix(l, "#") && l != "..." {
			break
		}
		end--
	}
	return end
}

func (e *editor) put(at int, text string) {
	e.insert[at] = append(e.insert[at], strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
}

func (e *editor) addService(edit *Edit, image, state string) error {
	if _, key := e.child(e.root, "services"); key == nil {
		return errShape
	}
	e.put(e.end("services"), "\n"+edit.serviceText(image, state, e.indent, e.step))
	return nil
}

func (e *editor) addVolume(name string) error {
	value, key := e.child(e.root, "volumes")
	switch {
	case key == nil:
		e.put(len(e.lines), fmt.Sprintf("\nvolumes:\n%*s%s:\n", e.step, "", name))
	case block(value) && len(value.Content) > 0:
		e.put(e.end("volumes"), fmt.Sprintf("%*s%s:\n", value.Content[0].Column-1, "", name))
	case value.Kind == yaml.ScalarNode && value.Value == "":
		e.put(key.Line, fmt.Sprintf("%*s%s:\n", e.step, "", name))
	default:
		return fmt.Errorf("%w: its volumes are in braces", errShape)
	}
	return nil
}

// depend makes a service wait for another.
func (e *editor) depend(s Service, on string) error {
	services, _ := e.child(e.root, "services")
	n, key := e.child(services, s.Name)
	if n == nil {
		return errors.New("it stands in another file")
	}
	if !block(n) || len(n.Content) == 0 {
		return errShape
	}
	inner := n.Content[0].Column - 1
	condition := func(indent int, name, c string) string {
		return fmt.Sprintf("%*s%s:\n%*scondition: %s\n", indent, "", name, indent+e.step, "", c)
	}
	deps, depsKey := e.child(n, "depends_on")
	if deps == nil {
		if len(s.Depends) > 0 {
			return errors.New("it has its depends_on from elsewhere")
		}
		at := key.Line // after the service's name
		if v, k := e.child(n, "image"); k != nil && v.Kind == yaml.ScalarNode && v.Line == k.Line && v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0 {
			at = k.Line
		}
		if n.Content[0].Line <= key.Line {
			return errShape
		}
		e.put(at, fmt.Sprintf("%*sdepends_on:\n", inner, "")+condition(inner+e.step, on, "service_healthy"))
		return nil
	}
	line := depsKey.Line - 1
	oneLine := deps.Line == depsKey.Line && (len(deps.Content) == 0 || lastLine(deps) == deps.Line)
	text := e.lines[line]
	switch {
	case deps.Kind == yaml.MappingNode && block(deps) && len(deps.Content) > 0:
		e.put(depsKey.Line, condition(deps.Content[0].Column-1, on, "service_healthy"))
	case deps.Kind == yaml.MappingNode && oneLine && strings.Contains(text, "}"):
		i := strings.LastIndex(text, "}")
		comma := ", "
		if len(deps.Content) == 0 {
			comma = ""
		}
		e.lines[line] = strings.TrimRight(text[:i], " ") + comma + on + ": {condition: service_healthy}" + text[i:]
	case deps.Kind == yaml.SequenceNode && deps.Style&yaml.FlowStyle != 0 && oneLine && strings.Contains(text, "]"):
		i, j := strings.Index(text, "["), strings.LastIndex(text, "]")
		e.lines[line] = strings.TrimRight(text[:i], " ") + text[j+1:]
		var list string
		for _, d := range deps.Content {
			list += condition(inner+e.step, d.Value, "service_started")
		}
		e.put(depsKey.Line, list+condition(inner+e.step, on, "service_healthy"))
	case deps.Kind == yaml.SequenceNode && deps.Style&yaml.FlowStyle == 0:
		for _, d := range deps.Content {
			if d.Kind != yaml.ScalarNode {
				return errShape
			}
			own := e.lines[d.Line-1]
			rest := own[min(len(own), d.Column-1+len(d.Value)):]
			if !strings.HasPrefix(own[d.Column-1:], d.Value) { // in quotes
				rest = ""
			}
			e.lines[d.Line-1] = fmt.Sprintf("%*s%s:%s", inner+e.step, "", d.Value, rest)
			e.put(d.Line, fmt.Sprintf("%*scondition: service_started\n", inner+2*e.step, ""))
		}
		e.put(deps.Content[len(deps.Content)-1].Line, condition(inner+e.step, on, "service_healthy"))
	default:
		return errShape
	}
	return nil
}

func lastLine(n *yaml.Node) int {
	last := n.Line
	for _, c := range n.Content {
		last = max(last, lastLine(c))
	}
	return last
}

func (e *editor) text() []byte {
	var out []string
	for i := 0; i <= len(e.lines); i++ {
		out = append(out, e.insert[i]...)
		if i < len(e.lines) {
			out = append(out, e.lines[i])
		}
	}
	return []byte(strings.Join(out, "\n") + "\n")
}

// sameBut reads the project with the changed file and compares: one service
// more, and nothing else but who waits for it.
func (p *Project) sameBut(ctx context.Context, o Options, e *Edit) error {
	before, err := p.loadWith(ctx, o, nil)
	if err != nil {
		return err
	}
	after, err := p.loadWith(ctx, o, e)
	if err != nil {
		return err
	}
	was, is := before.AllServices(), after.AllServices()
	added, ok := is[e.Service]
	if !ok || len(is) != len(was)+1 {
		return errors.New("the service is not in it")
	}
	if got := service(after, added); len(got.Mounts) != len(e.Volumes)+2 {
		return errors.New("the service has other volumes")
	}
	if stack := added.Environment["BACKUPD_STACK"]; stack == nil || *stack != e.Stack {
		return errors.New("the service is of another stack")
	}
	for name, old := range was {
		now := is[name]
		d := maps.Clone(now.DependsOn)
		if slices.Contains(e.Waiting, name) != (d[e.Service].Condition == types.ServiceConditionHealthy) {
			return fmt.Errorf("service %s depends on something else", name)
		}
		delete(d, e.Service)
		if len(d) != len(old.DependsOn) || len(d) > 0 && !reflect.DeepEqual(d, old.DependsOn) {
			return fmt.Errorf("service %s depends on something else", name)
		}
		old.DependsOn, now.DependsOn = nil, nil
		a, err := json.Marshal(old)
		if err != nil {
			return err
		}
		b, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			return fmt.Errorf("service %s is another", name)
		}
	}
	if len(after.Volumes) != len(before.Volumes)+1 || len(after.Networks) < len(before.Networks) {
		return errors.New("it has other volumes or networks")
	}
	return nil
}

// loadWith reads the project with what an Edit makes of its file.
func (p *Project) loadWith(ctx context.Context, o Options, e *Edit) (*types.Project, error) {
	opts, err := cli.NewProjectOptions(p.Files, cli.WithWorkingDirectory(p.Dir), cli.WithOsEnv, cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv, cli.WithDefaultProfiles(), cli.WithName(p.Name))
	if err != nil {
		return nil, err
	}
	details, err := opts.ReadConfigFiles(ctx, p.Dir, opts)
	if err != nil {
		return nil, err
	}
	env := maps.Clone(opts.Environment)
	if e != nil {
		for i := range details.ConfigFiles {
			if details.ConfigFiles[i].Filename == e.File {
				details.ConfigFiles[i].Content = e.New
			}
		}
		if env["BACKUPD_TARGET"] == "" { // which the new service asks for
			env["BACKUPD_TARGET"] = "/backups"
		}
	}
	return loader.LoadWithContext(ctx, types.ConfigDetails{ConfigFiles: details.ConfigFiles, WorkingDir: p.Dir, Environment: env}, func(l *loader.Options) {
		l.SetProjectName(p.Name, true)
		l.SkipResolveEnvironment = true
		l.Profiles = []string{"*"}
	})
}

// Write puts the new text in the place of the old, at once or not at all. A
// file that was changed meanwhile is left alone.
func (e *Edit) Write() error {
	fail := func(err error) error { return fmt.Errorf("write %s: %w", e.File, err) }
	name, err := filepath.EvalSymlinks(e.File) // the link stays one
	if err != nil {
		return fail(err)
	}
	now, err := os.ReadFile(name)
	if err != nil {
		return fail(err)
	}
	if !bytes.Equal(now, e.Old) {
		return fail(errors.New("it was changed meanwhile; run this again"))
	}
	info, err := os.Stat(name)
	if err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".backupd-*")
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(e.New)
	err = errors.Join(err, f.Chmod(info.Mode().Perm()), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
		return fail(err)
	}
	return nil
}
