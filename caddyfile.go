// This file holds the Caddyfile syntax.

package caddybokeh

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
)

const (
	// directive is the name of the directive that sets up a reverse proxy with this policy.
	directive = "bokeh_proxy"
	// filesDirective is the name of the one that keeps files, for what is before another proxy.
	filesDirective = "bokeh_files"
)

func init() {
	httpcaddyfile.RegisterDirective(directive, parseProxy)
	httpcaddyfile.RegisterDirectiveOrder(directive, httpcaddyfile.Before, "reverse_proxy")
	httpcaddyfile.RegisterHandlerDirective(filesDirective, parseFiles)
	httpcaddyfile.RegisterDirectiveOrder(filesDirective, httpcaddyfile.Before, "reverse_proxy")
}

// parseFiles sets up the handler that keeps files from Caddyfile tokens.
func parseFiles(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	f := new(Files)
	return f, f.UnmarshalCaddyfile(h.Dispenser)
}

// parseProxy sets up a reverse proxy from Caddyfile tokens. Syntax:
//
//	bokeh_proxy [<matcher>] <upstreams...> {
//		files <size>|off
//		# every option of lb_policy bokeh
//		# every subdirective of reverse_proxy but lb_policy
//	}
//
// It becomes, and what is given in its block goes before:
//
//	bokeh_files [<matcher>]
//	reverse_proxy [<matcher>] <upstreams...> {
//		lb_policy          bokeh {
//			hedge_after 1s
//		}
//		lb_try_duration    5s
//		lb_try_interval    250ms
//		stream_close_delay 24h
//	}
func parseProxy(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	proxy, files, err := parseProxyHandlers(h)
	if err != nil {
		return nil, err
	}
	values := h.NewRoute(matcher, proxy)
	if files == nil || len(values) == 0 {
		return values, nil
	}
	// Both are in one route, so that they have one matcher and one place among the directives.
	route := values[0].Value.(caddyhttp.Route)
	route.HandlersRaw = slices.Insert(route.HandlersRaw, 0, caddyconfig.JSONModuleObject(files, "handler", filesDirective, nil))
	values[0].Value = route
	return values, nil
}

// parseProxyHandlers returns the handlers of a bokeh_proxy; files is nil if they are off.
func parseProxyHandlers(h httpcaddyfile.Helper) (proxy *reverseproxy.Handler, files *Files, err error) {
	policy, proxy := new(Selection), new(reverseproxy.Handler)
	tokens, given, files, err := policy.takeOptions(h.Dispenser)
	if err != nil {
		return nil, nil, err
	}
	if err := proxy.UnmarshalCaddyfile(caddyfile.NewDispenser(tokens)); err != nil {
		if strings.Contains(err.Error(), "unrecognized subdirective") {
			err = fmt.Errorf("%w; it is neither files nor a subdirective of reverse_proxy nor an option of lb_policy bokeh, which are %s", err, strings.Join(policyOptions, ", "))
		}
		return nil, nil, err
	}
	if err := proxy.FinalizeUnmarshalCaddyfile(h); err != nil {
		return nil, nil, err
	}
	if len(proxy.Upstreams) == 0 && proxy.DynamicUpstreamsRaw == nil {
		return nil, nil, h.Errf("%s without an upstream: name the servers, or where they are discovered (dynamic)", directive)
	}
	if proxy.LoadBalancing == nil {
		proxy.LoadBalancing = new(reverseproxy.LoadBalancing)
	}
	lb := proxy.LoadBalancing
	if !given["hedge_after"] {
		policy.HedgeAfter = caddy.Duration(proxyHedgeAfter)
	}
	lb.SelectionPolicyRaw = caddyconfig.JSONModuleObject(policy, "policy", "bokeh", nil)
	unlessGiven := func(subdirective string, option *caddy.Duration, d time.Duration) {
		if !given[subdirective] {
			*option = caddy.Duration(d)
		}
	}
	unlessGiven("lb_try_duration", &lb.TryDuration, proxyTryDuration)
	unlessGiven("lb_try_interval", &lb.TryInterval, proxyTryInterval)
	unlessGiven("stream_close_delay", &proxy.StreamCloseDelay, proxyStreamCloseDelay)
	return proxy, files, nil
}

// takeOptions reads the policy's options in a bokeh_proxy. It returns the other tokens, which are those of
// a reverse_proxy, the names of all that is given, and the handler that keeps files, nil if that is off.
func (s *Selection) takeOptions(d *caddyfile.Dispenser) (others []caddyfile.Token, given map[string]bool, files *Files, err error) {
	d.Next() // to the directive's name
	others = append([]caddyfile.Token{d.Token()}, d.RemainingArgsAsTokens()...)
	for _, arg := range others[1:] {
		switch {
		case arg.Text == filesOption, slices.Contains(policyOptions, arg.Text):
			return nil, nil, nil, d.Errf("the option '%s' stands in a block, on a line of its own", arg.Text)
		case strings.ContainsAny(arg.Text, " \t\n"):
			return nil, nil, nil, d.Errf("'%s' is no upstream: each stands by itself, without quotes", arg.Text)
		}
	}
	given = make(map[string]bool)
	files = new(Files)
	block := false
	for ; d.NextBlock(0); block = true {
		if !block {
			d.Prev() // the brace has been consumed
			others = append(others, d.Token())
			d.Next()
		}
		switch name := d.Val(); {
		case name == "lb_policy":
			return nil, nil, nil, d.Errf("%s has its own lb_policy, bokeh; options of that stand right in this block", directive)
		case slices.Contains(policyOptions, name):
			given[name] = true
			if err := s.unmarshalLine(d); err != nil {
				return nil, nil, nil, err
			}
		case name == filesOption:
			if given[name] {
				return nil, nil, nil, d.Errf("%s already specified", name)
			}
			given[name] = true
			if files, err = unmarshalFiles(d); err != nil {
				return nil, nil, nil, err
			}
		default:
			given[name] = true
			others = append(others, d.NextSegment()...)
		}
	}
	if block {
		others = append(others, d.Token())
	}
	return others, given, files, nil
}

// filesOption is the option of bokeh_proxy that says how much memory files may take.
const filesOption = "files"

// unmarshalFiles reads the line of that option. It returns nil for off.
func unmarshalFiles(d *caddyfile.Dispenser) (*Files, error) {
	args := d.RemainingArgs()
	if len(args) != 1 {
		return nil, d.Errf("wrong argument count after '%s': write how much memory files may take, as in 128MiB, or off", filesOption)
	}
	if args[0] == "off" {
		return nil, nil
	}
	f := new(Files)
	return f, f.unmarshalSize(d)
}

// policyOptions are the names of the policy's options.
var policyOptions = []string{"session_ids", "secret_key", "unused_session_lifetime", "check_unused_sessions", "max_sessions", "group_by", "cookie", "hedge_after", "drain"}

// UnmarshalCaddyfile sets up the policy from Caddyfile tokens. Syntax:
//
//	lb_policy bokeh {
//		session_ids             unsigned|signed|external-signed
//		secret_key              <key...>
//		unused_session_lifetime <duration>
//		check_unused_sessions   <duration>
//		max_sessions            <n>
//		group_by                <placeholder>
//		cookie                  [<name>]
//		hedge_after             <duration>|off
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
		if err := s.unmarshalLine(d); err != nil {
			return err
		}
	}
	return nil
}

// unmarshalLine reads one option, which must be all that the line says.
func (s *Selection) unmarshalLine(d *caddyfile.Dispenser) error {
	option := d.Val()
	if err := s.unmarshalOption(d, option); err != nil {
		return err
	}
	if d.Next() {
		if d.Val() == "{" {
			return d.Errf("the option '%s' takes no block", option)
		}
		d.Prev()
	}
	return nil
}

func (s *Selection) unmarshalOption(d *caddyfile.Dispenser, option string) error {
	if option == "drain" {
		return s.unmarshalDrain(d)
	}
	args := d.RemainingArgs()
	switch {
	case len(args) == 0 && option == "secret_key":
		return d.Err("secret_key without a key; is it an environment variable that is not set?")
	case len(args) == 0 && option == "cookie":
		args = []string{defaultCookie}
	case len(args) == 0 || len(args) > 1 && option != "secret_key":
		return d.ArgErr()
	}
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
	case "max_sessions":
		if s.MaxSessions != 0 {
			return d.Err("max_sessions already specified")
		}
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 1 {
			return d.Errf("invalid max_sessions %q: it is how many sessions an upstream may have, at least 1; without the line there is no limit", args[0])
		}
		s.MaxSessions = n
	case "group_by":
		if s.GroupBy != "" {
			return d.Err("group_by already specified")
		}
		if err := checkGroupBy(args[0]); err != nil {
			return d.WrapErr(err)
		}
		s.GroupBy = args[0]
	case "cookie":
		if s.Cookie != "" {
			return d.Err("cookie already specified")
		}
		if err := checkCookie(args[0]); err != nil {
			return d.WrapErr(err)
		}
		s.Cookie = args[0]
	case "hedge_after":
		return s.unmarshalHedgeAfter(d, args[0])
	default:
		return d.Errf("unrecognized option '%s': it is one of %s", option, strings.Join(policyOptions, ", "))
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

func (s *Selection) unmarshalHedgeAfter(d *caddyfile.Dispenser, arg string) error {
	if s.HedgeAfter != 0 {
		return d.Err("hedge_after already specified")
	}
	if arg == "off" {
		return nil
	}
	v, err := caddy.ParseDuration(arg)
	if err != nil {
		return d.Errf("invalid hedge_after %q: write a duration with its unit, as in 1s, or off", arg)
	}
	if err := checkHedgeAfter(v); err != nil {
		return d.WrapErr(err)
	}
	s.HedgeAfter = caddy.Duration(v)
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
