package s3

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const example = "s3://bucket/prefix?endpoint=https://minio.example.com&region=eu-central-1"

var (
	settingName = regexp.MustCompile(`^[a-z][a-z-]{0,30}$`)
	settings    = []string{"ca-file", "endpoint", "lock-days", "lock-mode", "path-style", "profile", "region", "sse", "sse-key-id", "storage-class"}
)

// Parse reads s3://bucket/prefix?setting=value&... and returns defaults with
// what the name says in their place. Its errors say nothing that could be a secret.
func Parse(name string, defaults Options) (Options, error) {
	o, err := parse(name, defaults)
	if err != nil {
		return Options{}, fmt.Errorf("target s3://...: %w", err)
	}
	return o, nil
}

func parse(name string, o Options) (Options, error) {
	u, err := url.Parse(name)
	if err != nil || u.Scheme != "s3" || u.Opaque != "" {
		return o, errors.New("is no name of a bucket; write it as in " + example)
	}
	if u.User != nil {
		return o, errors.New("credentials do not belong into a target's name; name files of them, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	if strings.Contains(u.Host, ":") {
		return o, errors.New("a bucket has no port; the server is named by endpoint, as in " + example)
	}
	if u.Fragment != "" || strings.HasSuffix(name, "#") {
		return o, errors.New("a # has no meaning here; write it as in " + example)
	}
	o.Bucket = u.Host
	o.Prefix = strings.TrimSuffix(strings.TrimPrefix(u.Path, "/"), "/")
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return o, errors.New("what follows the ? cannot be read; write it as in " + example)
	}
	for _, key := range slices.Sorted(maps.Keys(query)) {
		values := query[key]
		if !settingName.MatchString(key) || !slices.Contains(settings, key) {
			if !settingName.MatchString(key) {
				key = "..."
			}
			return o, fmt.Errorf("there is no setting %q; there are %s", key, strings.Join(settings, ", "))
		}
		if len(values) > 1 {
			return o, fmt.Errorf("%s is said twice", key)
		}
		if values[0] == "" {
			return o, fmt.Errorf("%s has no value", key)
		}
		if err := o.set(key, values[0]); err != nil {
			return o, err
		}
	}
	return o, o.check()
}

func (o *Options) set(key, value string) error {
	switch key {
	case "ca-file":
		o.CAFile = value
	case "endpoint":
		o.Endpoint = value
	case "lock-days":
		days, err := strconv.Atoi(value)
		if err != nil {
			return errors.New("lock-days must be a number of days")
		}
		o.LockDays = days
	case "lock-mode":
		o.LockMode = strings.ToUpper(value)
	case "path-style":
		switch value {
		case "true":
			o.PathStyle, o.VirtualHosts = true, false
		case "false":
			o.PathStyle, o.VirtualHosts = false, true
		default:
			return errors.New("path-style must be true or false")
		}
	case "profile":
		o.Profile = value
	case "region":
		o.Region = value
	case "sse":
		o.SSE = value
	case "sse-key-id":
		o.SSEKeyID = value
	case "storage-class":
		o.StorageClass = strings.ToUpper(value)
	}
	return nil
}
