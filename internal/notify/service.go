package notify

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/nicholas-fedor/shoutrrr"
	"github.com/nicholas-fedor/shoutrrr/pkg/router"
	"github.com/nicholas-fedor/shoutrrr/pkg/types"
)

// sendTimeout is how long a service may take.
const sendTimeout = 30 * time.Second

// service is one of shoutrrr's.
type service struct {
	scheme string
	raw    string
	router *router.ServiceRouter
}

// openService reads an address. What it holds is secret but for the scheme.
func openService(raw string) (service, error) {
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok {
		return service{}, errors.New("address for messages: it has no ://; write it as ntfy://ntfy.sh/topic, or smtp://user:password@host:port/?from=a@example.com&to=b@example.com")
	}
	r, err := shoutrrr.CreateSender(raw)
	if err != nil {
		return service{}, fmt.Errorf("address for messages %s://...: %s", scheme, hide(err, raw))
	}
	r.Timeout = sendTimeout
	return service{scheme, raw, r}, nil
}

// send sends one message. The library takes no context: where ctx ends first,
// the message may still arrive.
func (s service) send(ctx context.Context, title, text string) error {
	params := types.Params{}
	params.SetTitle(title)
	results := s.router.SendAsync(text, &params)
	var errs []string
	for {
		select {
		case err, more := <-results:
			if err != nil {
				errs = append(errs, hide(err, s.raw))
			}
			if more {
				continue
			}
			if len(errs) > 0 {
				return fmt.Errorf("send a message by %s: %s", s.scheme, strings.Join(errs, "; "))
			}
			return nil
		case <-ctx.Done():
			return fmt.Errorf("send a message by %s: %w", s.scheme, ctx.Err())
		}
	}
}

// hide returns an error's text without what its address holds of secrets: all
// of it but the scheme and the host.
func hide(err error, raw string) string {
	text := strings.ReplaceAll(err.Error(), raw, "...")
	u, perr := url.Parse(raw)
	if perr != nil {
		return "cannot be read as an address"
	}
	secret := []string{u.User.Username(), u.Path, u.RawQuery, u.Fragment}
	if p, ok := u.User.Password(); ok {
		secret = append(secret, p)
	}
	secret = append(secret, strings.Split(u.Path, "/")...)
	for _, values := range u.Query() {
		secret = append(secret, values...)
	}
	if !strings.Contains(u.Hostname(), ".") && u.Hostname() != "localhost" {
		secret = append(secret, u.Hostname()) // of services whose tokens stand there
	}
	for _, s := range secret {
		if len(s) > 3 {
			text = strings.ReplaceAll(text, s, "...")
			text = strings.ReplaceAll(text, url.QueryEscape(s), "...")
		}
	}
	return text
}
