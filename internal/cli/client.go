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
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

// adminClient talks to the admin API of a running Caddy.
type adminClient struct {
	address string
}

func newAdminClient(fl caddycmd.Flags) (*adminClient, error) {
	if address := fl.String("address"); strings.Contains(address, "://") {
		return nil, fmt.Errorf("malformed --address %q: it is like localhost:2019 or unix//run/caddy.sock, with no scheme", address)
	}
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, fl.String("config"), fl.String("adapter"))
	if err != nil {
		return nil, fmt.Errorf("finding the admin API: %w", err)
	}
	return &adminClient{address}, nil
}

// do sends a request and reads the answer.
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
		res, err := caddycmd.AdminAPIRequest(c.address, method, uri, http.Header{"Connection": {"close"}}, reader)
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
	var said struct {
		Error string `json:"error"`
	}
	if i := strings.Index(err.Error(), "{"); i >= 0 && json.Unmarshal([]byte(err.Error()[i:]), &said) == nil && said.Error != "" {
		return saidError{errors.New(said.Error)}
	}
	if _, said, ok := strings.Cut(err.Error(), "responded with error: "); ok {
		status, _, _ := strings.Cut(said, ": ")
		return c.isNoAPI(status)
	}
	return fmt.Errorf("asking Caddy at %s: %w", c.address, err)
}

func (c *adminClient) isNoAPI(why any) error {
	return fmt.Errorf("what answers at %s is not the admin API of a Caddy with this module (--address or --config say where that is): %v", c.address, why)
}
