// This file holds how the admin API is asked.

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// adminClient talks to the admin API of a running Caddy. All methods may be called by any goroutine.
type adminClient struct {
	address string
	request func(address, method, uri string, headers http.Header, body io.Reader) (*http.Response, error)
}

func newAdminClient(fl caddycmd.Flags) (*adminClient, error) {
	if address := fl.String("address"); strings.Contains(address, "://") {
		return nil, fmt.Errorf("malformed --address %q: it is like localhost:2019 or unix//run/caddy.sock, with no scheme", address)
	}
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the admin API: %w", err)
	}
	return &adminClient{address, caddycmd.AdminAPIRequest}, nil
}

// do sends a request and reads the answer. One that is to be waited for and did not come in time tells how it stands then, as any other.
func (c *adminClient) do(ctx context.Context, method, uri string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, api.AnswerTimeout)
	defer cancel()
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(text)
	}
	type answer struct {
		text []byte
		err  error
	}
	answered := make(chan answer, 1)
	go func() { // Caddy's client cannot be told to give up.
		// It makes connections of its own for every request, which nobody would close.
		res, err := c.request(c.address, method, uri, http.Header{"Connection": {"close"}}, reader)
		if err != nil {
			answered <- answer{err: err}
			return
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		answered <- answer{text, err}
	}()
	select {
	case a := <-answered:
		if late, ok := lateAnswer(a.err); ok {
			a = answer{text: late}
		}
		if a.err != nil {
			return c.explain(a.err)
		}
		if err := json.Unmarshal(a.text, into); err != nil {
			return c.isNoAPI(err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("asking Caddy at %s: %w", c.address, ctx.Err())
	}
}

// saidError is one that the admin API has answered with.
type saidError struct{ error }

// silentError is one where no Caddy answers.
type silentError struct{ error }

// explain returns an error as a person reads it: what the API says is in JSON, behind what Caddy's
// client says of it.
func (c *adminClient) explain(err error) error {
	// Caddy's client keeps the text alone. A unix socket of nobody may be missing.
	for _, text := range []string{"connection refused", "connect: no such file or directory"} {
		if strings.Contains(err.Error(), text) {
			return silentError{fmt.Errorf("no Caddy answers at %s (--address or --config say where its admin API is)", c.address)}
		}
	}
	status, _ := answerIn(err)
	if i := strings.Index(err.Error(), "{"); i >= 0 {
		if said, _ := errorIn(err.Error()[i:]); said != "" {
			return saidError{errors.New(said)}
		}
	}
	if status != "" {
		return c.isNoAPI(status)
	}
	return fmt.Errorf("asking Caddy at %s: %w", c.address, err)
}

// lateAnswer returns the answer in an error of Caddy's client, if it is one that says that the time is up, and how it stands.
func lateAnswer(err error) (text []byte, ok bool) {
	status, body := answerIn(err)
	said, isJSON := errorIn(body)
	return []byte(body), status == "HTTP 504" && isJSON && said == ""
}

// answerIn returns the status and the body of the answer that Caddy's client has made an error of, or nothing if it had none.
func answerIn(err error) (status, body string) {
	if err == nil {
		return "", ""
	}
	if _, said, ok := strings.Cut(err.Error(), "responded with error: "); ok {
		status, body, _ = strings.Cut(said, ": ")
	}
	return status, body
}

// errorIn returns the error that the admin API tells in JSON, and whether it is JSON at all.
func errorIn(text string) (said string, isJSON bool) {
	var body struct {
		Error string `json:"error"`
	}
	err := json.Unmarshal([]byte(text), &body)
	return body.Error, err == nil
}

func (c *adminClient) isNoAPI(why any) error {
	return fmt.Errorf("what answers at %s is not the admin API of a Caddy with this module (--address or --config say where that is): %v", c.address, why)
}

const (
	// restartTimeout is how long a Caddy that does not answer is tried: it may be restarting.
	restartTimeout = 10 * time.Second

	// restartInterval is how often.
	restartInterval = 250 * time.Millisecond
)

// awaitCaddy waits for a moment where no Caddy answers: it may be restarting, and whoever waits for a drain
// waits for that as well.
func (c *adminClient) awaitCaddy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restartTimeout)
	defer cancel()
	for said := false; ; said = true {
		err := c.do(ctx, http.MethodGet, api.NodePath, nil, new(api.Node))
		if _, silent := errors.AsType[silentError](err); !silent {
			return
		}
		if !said {
			printable.Fprintf(os.Stderr, "%v; trying for %v\n", err, restartTimeout)
		}
		select {
		case <-time.After(restartInterval):
		case <-ctx.Done():
			return
		}
	}
}
