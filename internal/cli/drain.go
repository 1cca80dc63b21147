// This file holds caddy bokeh drain and undrain.

package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// drainBody is what is said beside which upstreams.
type drainBody = api.DrainRequest[string]

func commandDrain(fl caddycmd.Flags, addresses []string) (int, error) {
	timeout, err := timeoutOf(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	body, err := bodyOf(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	c, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if fl.Bool("wait") {
		c.awaitCaddy(ctx)
	}
	names, code, err := c.drain(ctx, body, addresses, fl.Bool("force"))
	if err != nil || !fl.Bool("wait") {
		return code, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return c.awaitDrained(ctx, newProgress(os.Stderr), names)
}

func commandUndrain(fl caddycmd.Flags, addresses []string) (int, error) {
	c, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	body := drainBody{Reason: fl.String("reason")}
	if _, err := c.mark(context.Background(), http.MethodDelete, "", body, addresses); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return caddy.ExitCodeSuccess, nil
}

// bodyOf returns what is said beside which upstreams drain.
func bodyOf(fl caddycmd.Flags) (drainBody, error) {
	body := drainBody{Reason: fl.String("reason")}
	value := fl.String("grace-period")
	if value == "" {
		return body, nil
	}
	grace, err := caddy.ParseDuration(value)
	if err != nil || grace < 0 {
		return body, fmt.Errorf("malformed --grace-period %q: it is a duration, like 30m or 8h, or 0", value)
	}
	text := grace.String()
	body.GracePeriod = &text
	return body, nil
}

// timeoutOf returns the value of --timeout, or 0 if there is none.
func timeoutOf(fl caddycmd.Flags) (time.Duration, error) {
	value := fl.String("timeout")
	if value == "" {
		return 0, nil
	}
	if !fl.Bool("wait") {
		return 0, errors.New("--timeout needs --wait")
	}
	d, err := caddy.ParseDuration(value)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("malformed --timeout %q: it is a duration above zero, like 90s or 8h", value)
	}
	return d, nil
}

// drain says of each upstream that it drains, and returns their names, or how to exit and why. Unless forced, all must be known: or a
// typo in the last address would be found when the others drain.
func (c *adminClient) drain(ctx context.Context, body drainBody, addresses []string, force bool) (names []string, code int, err error) {
	query := "?force=true"
	if !force {
		query = ""
		err := c.know(ctx, addresses)
		if ctx.Err() != nil {
			return nil, exitInterrupted, errors.New("interrupted; nothing was marked")
		}
		if _, said := errors.AsType[saidError](err); said {
			err = fmt.Errorf("%w (--force marks an address that nobody knows yet)", err)
		}
		if err != nil {
			return nil, caddy.ExitCodeFailedStartup, err
		}
	}
	names, err = c.mark(ctx, http.MethodPut, query, body, addresses)
	if ctx.Err() != nil {
		return nil, exitInterrupted, fmt.Errorf("interrupted; what was being marked may drain, caddy bokeh status shows it: %w", err)
	}
	if err != nil {
		return nil, caddy.ExitCodeFailedStartup, err
	}
	return names, caddy.ExitCodeSuccess, nil
}

// know returns an error if an address is that of no upstream.
func (c *adminClient) know(ctx context.Context, addresses []string) error {
	for _, address := range addresses {
		if address == "" {
			return errors.New("an address is empty")
		}
		var st api.Upstream
		if err := c.do(ctx, http.MethodGet, api.UpstreamsPath+"/"+url.PathEscape(address), nil, &st); err != nil {
			return err
		}
	}
	return nil
}

// mark says of each upstream that it drains, or not, and returns their names. An error says what was
// done before.
func (c *adminClient) mark(ctx context.Context, method, query string, body drainBody, addresses []string) (names []string, err error) {
	for _, address := range addresses {
		var st api.Upstream
		if err := c.do(ctx, method, api.DrainingPath+"/"+url.PathEscape(address)+query, body, &st); err != nil {
			if len(names) > 0 {
				err = fmt.Errorf("%w (done before: %s)", err, strings.Join(names, ", "))
			}
			return nil, err
		}
		printable.Fprintf(os.Stdout, "%s is %s, with %s\n", st.Address, st.State, api.InWords(st.Total))
		if method == http.MethodPut && !st.InPool() {
			printable.Fprintf(os.Stderr, "warning: no Caddy has %s in a pool; if that is a slip, caddy bokeh undrain %s takes it back\n", st.Address, st.Address)
		}
		names = append(names, st.Address)
	}
	return names, nil
}
