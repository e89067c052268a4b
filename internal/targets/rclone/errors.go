package rclone

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/disko/backupd/internal/store"
)

// rclone has one code for nearly every error, and passes on the words of some
// seventy services. What follows are the words for what no retry mends; what
// is not known is taken for transient.
var (
	transientWords = []string{"rate limit", "ratelimit", "too many requests", "error 429", "timeout", "timed out", "connection refused", "connection reset", "temporarily"}
	spaceWords     = []string{"no space left", "remaining disk space", "quota exceeded", "quotaexceeded", "quota has been exceeded", "over quota", "insufficient storage", "insufficient_space", "insufficientspace", "disk full"}
	accessWords    = []string{
		"permission denied", "access denied", "accessdenied", "operation not permitted", "read-only file system", "read only", "unauthorized", "forbidden",
		"invalid_grant", "token expired", "couldn't fetch token", "invalidaccesskeyid", "signaturedoesnotmatch", "authenticationfailed", "authentication failed",
		"unable to authenticate", "login incorrect", "invalid_access_token", "expired_access_token", "unable to decrypt configuration", "wrong password", "couldn't decrypt configuration",
	}
	configWords   = []string{"failed to load config file"}
	noTargetWords = []string{
		"didn't find section in config file", "didn't find backend called", "unknown flag", "unknown shorthand flag",
		"nosuchbucket", "bucket not found", "containernotfound", "is a file not a directory",
	}
)

// classify makes an error of rclone's words, with a sentinel where it is permanent.
func (o Options) classify(text string) error {
	switch {
	case isAny(text, configWords):
		return fmt.Errorf("%w: %s; check rclone's configuration with \"rclone config show\"", store.ErrNoTarget, text)
	case isAny(text, transientWords):
		return errors.New(text)
	case isAny(text, noTargetWords):
		return fmt.Errorf("%w: %s; check %s with \"rclone lsf\"", store.ErrNoTarget, text, o.location())
	case isAny(text, spaceWords):
		return fmt.Errorf("%w: %s", store.ErrNoSpace, text)
	case isAny(text, accessWords):
		return fmt.Errorf("%w: %s", store.ErrAccess, text)
	}
	return errors.New(text)
}

func isAny(text string, words []string) bool {
	text = strings.ToLower(text)
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text, w) })
}

// notThere says that rclone calls an object absent: it has no other code for a
// directory, and none at all for a name below a file.
func notThere(err error) bool {
	var e *rcError
	if !errors.As(err, &e) {
		return false
	}
	if strings.Contains(e.text, "couldn't find method") {
		return false // of rclone itself; never of an object
	}
	return e.status == http.StatusNotFound || strings.Contains(e.text, "is a directory not a file") || strings.HasSuffix(e.text, ": not a directory")
}

// explain says the act, and gives an error the sentinel that callers ask for.
func (t *Target) explain(act, what string, err error) error {
	if err == nil {
		return nil
	}
	var said *rcError
	switch {
	case errors.Is(err, store.ErrNoTarget), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
	case notThere(err):
		err = fmt.Errorf("%w (%w)", store.ErrNotExist, err)
	case errors.As(err, &said):
		err = t.o.classify(said.text)
	}
	return fmt.Errorf("%s %s: %w", act, what, err)
}
