package config

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxFile is far more than any configuration needs.
const maxFile = 1 << 20

// value is what one place says about one setting.
type value struct {
	texts []string
	hooks []Hook
	from  From
}

// layer is what one kind of place says: by key, which is NAME or policies.POLICY.NAME.
type layer struct {
	values   map[string]value
	policies []string // in the order in which they stand
	problems Problems
}

func newLayer() *layer { return &layer{values: map[string]value{}} }

func (l *layer) addPolicy(name string) {
	for _, p := range l.policies {
		if p == name {
			return
		}
	}
	l.policies = append(l.policies, name)
}

func policyKey(policy, name string) string { return "policies." + policy + "." + name }

// fileReader reads the YAML file. It goes through nodes and not into structs:
// so every error knows its line, and one does not hide the next.
type fileReader struct {
	t    *table
	name string // as errors show it
	out  *layer
}

// readYAML reads a file's content.
func readYAML(t *table, path string, data []byte) *layer {
	r := &fileReader{t: t, name: filepath.Base(path), out: newLayer()}
	r.read(data)
	r.out.problems = r.out.problems.sorted()
	return r.out
}

// yamlLine is where the library's errors say their line.
var yamlLine = regexp.MustCompile(`(?:yaml: )?(?:while [a-z ]+ at )?line (\d+)(?:, column \d+)?:? ?`)

func (r *fileReader) wrong(line int, key, format string, args ...any) {
	r.out.problems = append(r.out.problems, Problem{
		Place: r.place(line), Key: key, Text: fmt.Sprintf(format, args...), line: line,
	})
}

func (r *fileReader) place(line int) string {
	if line == 0 {
		return r.name
	}
	return r.name + ":" + strconv.Itoa(line)
}

func (r *fileReader) read(data []byte) {
	if len(data) > maxFile {
		r.wrong(0, "", "is larger than %d bytes; that is no configuration", maxFile)
		return
	}
	dec := yaml.NewDecoder(strings.NewReader(string(data)))
	var doc, second yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return // empty, or comments only
	}
	if err != nil {
		r.syntax(err, data)
		return
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.syntax(err, data)
		return
	default:
		r.wrong(second.Line, "", `a second document begins here; a configuration is one, without "---" between`)
	}
	if len(doc.Content) == 0 {
		return
	}
	if root := doc.Content[0]; root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return
	}
	for _, e := range r.mapping(doc.Content[0], "") {
		if e.key == "policies" {
			r.policies(e.value)
			continue
		}
		r.setting(e, "")
	}
}

// syntax says what the YAML library could not read. A schedule such as @daily is
// the likeliest: YAML keeps the character for itself.
func (r *fileReader) syntax(err error, data []byte) {
	line, message := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		line, _ = strconv.Atoi(m[1])
		message = yamlLine.ReplaceAllString(message, "")
	}
	hint := "is no YAML"
	lines := strings.Split(string(data), "\n")
	for _, n := range []int{line - 1, line} {
		if n < 0 || n >= len(lines) {
			continue
		}
		switch _, after, _ := strings.Cut(lines[n], ":"); {
		case strings.HasPrefix(strings.TrimSpace(after), "@"):
			line, hint = n+1, `is no YAML: put what begins with @ into quotes, as in "@daily"`
		case strings.HasPrefix(strings.TrimSpace(after), "*"):
			line, hint = n+1, `is no YAML: put what begins with * into quotes, as in "*/5 * * * *"`
		case strings.HasPrefix(lines[n], "\t"):
			line, hint = n+1, "is no YAML: indent with spaces, not with tabs"
		default:
			continue
		}
		break
	}
	r.wrong(line, "", "%s: %s", hint, message)
}

// pair is one line of a mapping.
type pair struct {
	key   string
	line  int
	value *yaml.Node
}

// mapping returns the pairs of a mapping, without repeated keys.
func (r *fileReader) mapping(n *yaml.Node, key string) []pair {
	if n.Kind == yaml.AliasNode {
		r.wrong(n.Line, key, "aliases (*%s) are not read; write it out", n.Value)
		return nil
	}
	if n.Kind != yaml.MappingNode {
		r.wrong(n.Line, key, `must hold lines of the form "key: value"`)
		return nil
	}
	var out []pair
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch first, twice := seen[k.Value]; {
		case k.Kind != yaml.ScalarNode:
			r.wrong(k.Line, key, "a key must be a word")
		case k.Value == "<<":
			r.wrong(k.Line, key, "merging (<<) is not read; write it out")
		case twice:
			r.wrong(k.Line, join(key, k.Value), "stands here again; it was set in line %d already: remove one", first)
		default:
			seen[k.Value] = k.Line
			out = append(out, pair{k.Value, k.Line, v})
		}
	}
	return out
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

func (r *fileReader) policies(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		r.wrong(n.Line, "policies", "has no value; name policies below it, or remove it")
		return
	}
	for _, p := range r.mapping(n, "policies") {
		if !policyName.MatchString(p.key) {
			r.wrong(p.line, "policies", "%q is no name for a policy: small letters, digits, - and _", p.key)
			continue
		}
		r.out.addPolicy(p.key)
		if p.value.Kind == yaml.ScalarNode && p.value.Tag == "!!null" {
			continue // all of it as at the top
		}
		for _, e := range r.mapping(p.value, join("policies", p.key)) {
			r.setting(e, p.key)
		}
	}
}

// setting reads one line: a setting's name and its value.
func (r *fileReader) setting(e pair, policy string) {
	key := e.key
	if policy != "" {
		key = policyKey(policy, e.key)
	}
	s, known := r.t.get(e.key)
	if known && policy != "" && !s.policy {
		r.wrong(e.line, key, "does not belong into a policy; put it at the top of the file")
		return
	}
	if !known {
		what := "is not known"
		if r.t.foreign[e.key] {
			what = "is for the command line or the environment, not for the file"
		}
		r.wrong(e.line, key, "%s%s", what, suggest(e.key, r.t.names(policy != "")))
		return
	}
	v := value{from: From{Kind: FromFile, Place: r.place(e.line), line: e.line}}
	before := len(r.out.problems)
	if s.kind == hookList {
		v.hooks = r.hooks(e.value, key)
	} else {
		v.texts = r.texts(e.value, key, s)
	}
	if len(r.out.problems) == before {
		r.out.values[key] = v
	}
}

// texts reads a scalar, or for settings with several values a list of them.
func (r *fileReader) texts(n *yaml.Node, key string, s Setting) []string {
	switch n.Kind {
	case yaml.ScalarNode:
		if t, ok := r.scalar(n, key); ok {
			if s.kind == enums || s.kind == words {
				return s.split(t)
			}
			return []string{t}
		}
	case yaml.SequenceNode:
		if s.kind != list && s.kind != words && s.kind != enums {
			r.wrong(n.Line, key, "takes one value and not a list")
			return nil
		}
		var out []string
		for _, item := range n.Content {
			if t, ok := r.scalar(item, key); ok {
				out = append(out, t)
			}
		}
		if len(n.Content) == 0 {
			r.wrong(n.Line, key, "is an empty list; give a value, or remove the line")
		}
		return out
	case yaml.AliasNode:
		r.wrong(n.Line, key, `aliases (*%s) are not read; write it out, or put what begins with * into quotes`, n.Value)
	default:
		r.wrong(n.Line, key, "takes a value and not keys of its own")
	}
	return nil
}

func (r *fileReader) scalar(n *yaml.Node, key string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode:
		r.wrong(n.Line, key, "takes plain values, not keys or lists inside")
		return "", false
	case n.Tag == "!!null":
		r.wrong(n.Line, key, "has no value; give one, or remove the line")
		return "", false
	}
	return n.Value, true
}

// hooks reads a list of what to run in services.
func (r *fileReader) hooks(n *yaml.Node, key string) []Hook {
	if n.Kind != yaml.SequenceNode || len(n.Content) == 0 {
		r.wrong(n.Line, key, `takes a list of hooks, as in "- {service: application, command: bin/console cache:clear}"`)
		return nil
	}
	var out []Hook
	for _, item := range n.Content {
		h := Hook{}
		for _, e := range r.mapping(item, key) {
			where := join(key, e.key)
			t := r.texts(e.value, where, Setting{})
			if len(t) == 0 {
				continue
			}
			switch e.key {
			case "service":
				h.Service = t[0]
			case "command":
				h.Command = t[0]
			case "user":
				h.User = t[0]
			case "timeout":
				d, err := parseDuration(t[0])
				if err != nil {
					r.wrong(e.line, where, "%v", err)
				}
				h.Timeout = d
			default:
				r.wrong(e.line, where, "is not known%s", suggest(e.key, hookKeys))
			}
		}
		if h.Service == "" || h.Command == "" {
			r.wrong(item.Line, key, "a hook needs a service and a command")
		}
		out = append(out, h)
	}
	return out
}

var hookKeys = []string{"service", "command", "user", "timeout"}
