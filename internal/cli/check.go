// This file holds caddy bokeh storage-check.

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

func commandCheck(fl caddycmd.Flags, _ []string) (int, error) {
	c, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var check api.StorageCheck
	if err := c.do(context.Background(), http.MethodPost, api.StorageCheckPath, nil, &check); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var nodes []api.Node
	if err := c.do(context.Background(), http.MethodGet, api.NodesPath, nil, &nodes); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if err := printCheck(os.Stdout, &check, nodes); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if !check.OK {
		return caddy.ExitCodeFailedStartup, errors.New("the storage cannot do all that drains need; take another one (storage in the global options), or mend it")
	}
	return caddy.ExitCodeSuccess, nil
}

// printCheck writes what was tried of a storage, what follows from what failed, and who reports there.
func printCheck(w io.Writer, check *api.StorageCheck, nodes []api.Node) error {
	printable.Fprintf(w, "storage: %s\n\n", check.Storage)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range check.Steps {
		result := "ok"
		if !s.OK {
			result = "FAILED"
		}
		took := time.Duration(s.Seconds * float64(time.Second)).Round(10 * time.Microsecond)
		printable.Fprintf(table, "%s\t%s\t%v\t%s\n", s.Name, result, took, s.Note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, s := range check.Steps {
		if !s.OK {
			printable.Fprintf(w, "\n%s: %s\n  so %s\n", s.Name, strings.ReplaceAll(s.Error, "\n", "; "), s.Means)
		}
	}
	if len(nodes) > 0 && nodes[0].Policies == 0 {
		printable.Fprintf(w, "\n%v, so it keeps nothing in it and looks for nobody there\n", api.ErrNoPolicy)
		return nil
	}
	fmt.Fprintln(w, "\nCaddys that this one finds in it:")
	for _, n := range nodes {
		self := ""
		if n.Self {
			self = " (this one)"
		}
		printable.Fprintf(w, "  %s on %s: %s%s\n", n.Node, n.Host, n.State, self)
	}
	return nil
}
