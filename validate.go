// This file holds which options are refused, and why.

package caddybokeh

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// Validate checks s.
func (s *Selection) Validate() error {
	if err := checkSessionIDs(s.SessionIDs); err != nil {
		return err
	}
	if err := checkLifetime("unused_session_lifetime", time.Duration(s.UnusedSessionLifetime)); err != nil {
		return err
	}
	if err := checkLifetime("check_unused_sessions", time.Duration(s.CheckUnusedSessions)); err != nil {
		return err
	}
	if s.MaxSessions < 0 {
		return fmt.Errorf("invalid max_sessions %d: it is at least 1, or 0 for no limit", s.MaxSessions)
	}
	if s.GroupBy != "" {
		if err := checkGroupBy(s.GroupBy); err != nil {
			return err
		}
	}
	if s.Cookie != "" {
		if err := checkCookie(s.Cookie); err != nil {
			return err
		}
	}
	if s.HedgeAfter != 0 {
		if err := checkHedgeAfter(time.Duration(s.HedgeAfter)); err != nil {
			return err
		}
	}
	for _, addr := range s.Drain {
		if err := checkDrain(addr); err != nil {
			return err
		}
	}
	return nil
}

// checkSessionIDs, checkLifetime, checkGroupBy, checkHedgeAfter and checkDrain are here and in the Caddyfile, which can say the line.
func checkSessionIDs(v string) error {
	switch v {
	case sessionIDsUnsigned, sessionIDsSigned, sessionIDsExternalSigned:
		return nil
	}
	return fmt.Errorf("invalid session_ids %q: it is one of %s", v,
		strings.Join([]string{sessionIDsUnsigned, sessionIDsSigned, sessionIDsExternalSigned}, ", "))
}

func checkLifetime(option string, d time.Duration) error {
	switch {
	case d < time.Second:
		return fmt.Errorf("invalid %s %v: it is at least 1s; Bokeh's flag counts milliseconds, here write 15s for 15000", option, d)
	case d > maxLifetime:
		return fmt.Errorf("invalid %s %v: it is at most %v", option, d, maxLifetime)
	}
	return nil
}

// placeholder finds one in the JSON of a module's config.
var placeholder = regexp.MustCompile(`\{[^"{}\s]+\}`)

// checkGroupBy returns an error unless v is one placeholder. With more text, all sessions that have no value would be
// one group.
func checkGroupBy(v string) error {
	if placeholder.FindString(v) != v {
		return fmt.Errorf("invalid group_by %q: it is one placeholder and nothing else, as in {http.auth.user.id}", v)
	}
	return nil
}

// checkHedgeAfter keeps it above what usual answers take, or every file would be asked for twice.
func checkHedgeAfter(d time.Duration) error {
	if d < minHedgeAfter {
		return fmt.Errorf("invalid hedge_after %v: it is at least %v, or off", d, minHedgeAfter)
	}
	return nil
}

func checkDrain(addr string) error {
	parsed, err := caddy.ParseNetworkAddress(addr)
	switch {
	case addr == "":
		return errors.New(`drain "": it names no upstream`)
	case len(addr) > maxAddress:
		return fmt.Errorf("drain: an address of %d bytes names no upstream: it has at most %d", len(addr), maxAddress)
	case hasPlaceholder(addr):
		return fmt.Errorf("drain %s: an upstream whose address depends on the request cannot be named", addr)
	case err != nil:
		return fmt.Errorf("drain %q: %w", addr, err)
	case parsed.PortRangeSize() != 1:
		return fmt.Errorf("drain %q: in JSON an address has exactly one port", addr)
	}
	return nil
}
