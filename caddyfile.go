// This file holds the Caddyfile syntax.

package caddybokeh

import (
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	lb_policy bokeh {
//		session_ids             unsigned|signed|external-signed
//		secret_key              <key...>
//		unused_session_lifetime <duration>
//		check_unused_sessions   <duration>
//		drain                   <upstream...>
//	}
//
// Every line is optional; `lb_policy bokeh` alone is right for a stock `bokeh serve`.
func (s *Selection) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume policy name
	if d.NextArg() {
		return d.Errf("unexpected '%s': the policy takes no arguments, its options stand in a block", d.Val())
	}
	for d.NextBlock(0) {
		option := d.Val()
		if option == "drain" {
			if err := s.unmarshalDrain(d); err != nil {
				return err
			}
			continue
		}
		args := d.RemainingArgs()
		switch {
		case len(args) == 0 && option == "secret_key":
			return d.Err("secret_key without a key; is it an environment variable that is not set?")
		case len(args) == 0 || len(args) > 1 && option != "secret_key":
			return d.ArgErr()
		}
		if err := s.unmarshalOption(d, option, args); err != nil {
			return err
		}
	}
	return nil
}

func (s *Selection) unmarshalOption(d *caddyfile.Dispenser, option string, args []string) error {
	switch option {
	case "session_ids":
		if s.SessionIDs != "" {
			return d.Err("session_ids already specified")
		}
		if err := checkSessionIDs(args[0]); err != nil {
			return d.WrapErr(err)
		}
		s.SessionIDs = args[0]
	case "secret_key":
		if s.SecretKey != nil {
			return d.Err("secret_key already specified; write all keys on one line, the one that signs first")
		}
		if slices.Contains(args, "") {
			return d.Err("empty secret_key")
		}
		s.SecretKey = args
	case "unused_session_lifetime":
		return unmarshalLifetime(d, option, args[0], &s.UnusedSessionLifetime)
	case "check_unused_sessions":
		return unmarshalLifetime(d, option, args[0], &s.CheckUnusedSessions)
	default:
		return d.Errf("unrecognized option '%s': it is one of session_ids, secret_key, unused_session_lifetime, check_unused_sessions, drain", option)
	}
	return nil
}

// unmarshalDrain reads addresses as reverse_proxy itself reads those of its upstreams. The line may
// be repeated, as that of reverse_proxy may.
func (s *Selection) unmarshalDrain(d *caddyfile.Dispenser) error {
	line := d.Token()
	addrs := d.RemainingArgsAsTokens()
	if len(addrs) == 0 {
		return d.ArgErr()
	}
	var h reverseproxy.Handler
	if err := h.UnmarshalCaddyfile(caddyfile.NewDispenser(slices.Concat([]caddyfile.Token{line}, addrs))); err != nil {
		return err
	}
	for _, u := range h.Upstreams {
		if err := checkDrain(u.Dial); err != nil {
			return d.WrapErr(err)
		}
		s.Drain = append(s.Drain, u.Dial)
	}
	return nil
}

func unmarshalLifetime(d *caddyfile.Dispenser, option, arg string, to *caddy.Duration) error {
	if *to != 0 {
		return d.Errf("%s already specified", option)
	}
	v, err := caddy.ParseDuration(arg)
	if err != nil {
		return d.Errf("invalid %s %q: write a duration with its unit, as in 15s; Bokeh's flag counts milliseconds", option, arg)
	}
	if err := checkLifetime(option, v); err != nil {
		return d.WrapErr(err)
	}
	*to = caddy.Duration(v)
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Selection)(nil)
