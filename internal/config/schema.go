package config

import (
	"bytes"
	"encoding/json"
)

// Schema returns the JSON schema of the file, for editors. flags are those of Sources.
func Schema(flags []Flag) ([]byte, error) {
	t := newTable(flags)
	top, policy := map[string]any{}, map[string]any{}
	for _, s := range t.settings {
		top[s.Name] = s.schema()
		if s.policy {
			policy[s.Name] = s.schema()
		}
	}
	top["policies"] = object{
		"type":                 "object",
		"description":          "policies by name; what one does not say is as at the top",
		"propertyNames":        object{"pattern": policyName.String()},
		"additionalProperties": object{"type": []string{"object", "null"}, "properties": policy, "additionalProperties": false},
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(object{
		"$schema":              "https://json-schema.org/draft/2020-12/schema",
		"title":                "backupd.yaml",
		"description":          "configuration of backupd, a backup agent for the volumes of Compose stacks",
		"type":                 []string{"object", "null"},
		"properties":           top,
		"additionalProperties": false,
	})
	return out.Bytes(), err
}

type object = map[string]any

// schema of the setting's value. YAML makes numbers and truth values of plain words,
// so a text may be one.
func (s Setting) schema() object {
	plain := object{"type": []string{"string", "number", "boolean"}}
	one := plain
	switch s.kind {
	case enum, enums:
		one = object{"enum": s.values}
	case duration:
		one = object{"type": "string", "pattern": `^([0-9]+d)?([0-9]+(\.[0-9]*)?(ns|us|µs|ms|s|m|h))*$|^0$`}
	case flagDuration:
		one = object{"type": "string"}
	case size:
		one = object{"type": []string{"string", "integer"}, "pattern": `^[0-9]+ *([kKmMgGtT]([iI]?[bB])?|[bB])?$`}
	case number:
		one = object{"type": []string{"number", "string"}}
	case share:
		one = object{"type": "string", "pattern": `^[0-9.]+ *%$`}
	case cronExpr:
		one = object{"type": "string"}
	case toggle:
		one = object{"type": "boolean"}
	case integer:
		one = object{"type": "integer"}
	case hookList:
		one = object{
			"type": "object", "required": []string{"service", "command"}, "additionalProperties": false,
			"properties": object{
				"service": object{"type": "string"}, "command": object{"type": "string"}, "user": plain,
				"timeout": Setting{kind: duration}.schema(),
			},
		}
	}
	out := one
	switch s.kind {
	case list, words, enums:
		out = object{"oneOf": []object{one, {"type": "array", "items": one, "minItems": 1}}}
		if s.kind == enums { // with commas, as in the environment
			out = object{"oneOf": []object{{"type": "string"}, {"type": "array", "items": one, "minItems": 1}}}
		}
	case hookList:
		out = object{"type": "array", "items": one, "minItems": 1}
	}
	if s.Help != "" {
		out["description"] = s.Help
	}
	if s.Default != "" {
		out["default"] = s.Default
		if s.kind == enums {
			out["default"] = s.split(s.Default)
		}
	}
	return out
}
