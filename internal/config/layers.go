package config

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// readEnvironment reads BACKUPD_*. A variable that is set to nothing is not set:
// Compose files say ${X:-} for what .env may leave out.
func readEnvironment(t *table, environ []string) *layer {
	out := newLayer()
	names := map[string]string{} // BACKUPD_X to x
	known := []string{"BACKUPD_CONFIG"}
	for _, s := range t.settings {
		if !s.FileOnly() {
			names[envName(s.Name)] = s.Name
			known = append(known, envName(s.Name))
		}
	}
	for name := range t.foreign {
		names[envName(name)] = ""
		known = append(known, envName(name))
	}
	slices.Sort(known)
	for _, line := range environ {
		variable, text, _ := strings.Cut(line, "=")
		if !strings.HasPrefix(variable, "BACKUPD_") || variable == "BACKUPD_CONFIG" {
			continue
		}
		name, ok := names[variable]
		if !ok {
			out.problems = append(out.problems, Problem{Place: variable, Text: "is not known" + suggest(variable, known)})
			continue
		}
		if text == "" || name == "" {
			continue
		}
		s, _ := t.get(name)
		out.values[name] = value{texts: s.split(text), from: From{Kind: FromEnvironment, Place: variable}}
	}
	out.sort()
	return out
}

// serviceLabels are labels that say something about a service, and nothing about
// the agent, and the one of its workers.
var serviceLabels = []string{"quiesce", "pre", "post", "dump", "drill", "worker"}

// volumeLabel says of a volume that it is not backed up.
const volumeLabel = "exclude"

// readLabels reads backupd.NAME and backupd.policy.POLICY.NAME of the service
// that backupd runs as.
func readLabels(t *table, labels map[string]string) *layer {
	out := newLayer()
	for _, label := range sortedKeys(labels) {
		rest, ok := strings.CutPrefix(label, "backupd.")
		if !ok {
			continue
		}
		if first, _, _ := strings.Cut(rest, "."); slices.Contains(serviceLabels, first) {
			continue
		}
		place := "label " + label
		wrong := func(format string, args ...any) {
			out.problems = append(out.problems, Problem{Place: place, Text: fmt.Sprintf(format, args...)})
		}
		key, name, policy := rest, rest, ""
		if p, ok := strings.CutPrefix(rest, "policy."); ok {
			if policy, name, ok = strings.Cut(p, "."); !ok || !policyName.MatchString(policy) {
				wrong("must have the form backupd.policy.NAME.SETTING, as in backupd.policy.nightly.schedule")
				continue
			}
			key = policyKey(policy, name)
		}
		s, known := t.get(name)
		switch {
		case !known:
			wrong("is not known%s", suggest(name, t.names(policy != "")))
		case policy != "" && !s.policy:
			wrong("does not belong into a policy; the label is backupd.%s", name)
		case policy == "" && name == volumeLabel:
			wrong("stands on volumes; patterns of files to leave out are %s", envName(name))
		case s.FileOnly():
			wrong("can be set in the file only")
		case t.byName[name] >= t.own:
			wrong("cannot be set by a label, which only the agent reads; use %s", envName(name))
		case s.secret:
			wrong("is a secret, and everybody with access to the engine can read labels; use %s_FILE", envName(name))
		default:
			if policy != "" {
				out.addPolicy(policy)
			}
			if labels[label] != "" {
				out.values[key] = value{texts: s.split(labels[label]), from: From{Kind: FromLabel, Place: "label " + label}}
			}
		}
	}
	return out
}

// readFlags reads what stood on the command line.
func readFlags(t *table, flags []Flag) *layer {
	out := newLayer()
	for _, f := range flags {
		s, ok := t.get(f.Name)
		if f.Given == nil || !ok {
			continue
		}
		texts := f.Given
		if s.kind != list && len(texts) == 1 {
			texts = s.split(texts[0])
		}
		out.values[f.Name] = value{texts: texts, from: From{Kind: FromFlag, Place: "--" + f.Name}}
	}
	return out
}

// sort puts problems into an order that is the same each time.
func (l *layer) sort() {
	slices.SortFunc(l.problems, func(a, b Problem) int { return strings.Compare(a.Place, b.Place) })
}

func sortedKeys(m map[string]string) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// secretText reads the file of a secret. One that cannot be had is an error, always.
func secretText(read func(string) ([]byte, error), path string) (string, error) {
	data, err := read(path)
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return "", fmt.Errorf("read %s: %w; mount the secret, or remove the setting", path, err)
	}
	out := strings.TrimRight(string(data), "\r\n")
	if strings.TrimSpace(out) == "" {
		return "", fmt.Errorf("%s is empty; fill the secret, or remove the setting", path)
	}
	return out, nil
}
