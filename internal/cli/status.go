// This file holds caddy bokeh status.

package cli

import (
	"context"
	"encoding/json"
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

func commandStatus(fl caddycmd.Flags, _ []string) (int, error) {
	c, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var raw json.RawMessage
	if err := c.do(context.Background(), http.MethodGet, api.UpstreamsPath, nil, &raw); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if fl.Bool("json") {
		fmt.Println(strings.TrimSpace(string(printable.JSON(raw)))) // an older Caddy may not have seen to that
		return caddy.ExitCodeSuccess, nil
	}
	var all []api.Upstream
	if err := json.Unmarshal(raw, &all); err != nil {
		return caddy.ExitCodeFailedStartup, fmt.Errorf("reading the answer: %w", err)
	}
	var nodes []api.Node
	if err := c.do(context.Background(), http.MethodGet, api.NodesPath, nil, &nodes); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if len(all) == 0 && nodes[0].Policies == 0 {
		return caddy.ExitCodeFailedStartup, api.ErrNoPolicy
	}
	return caddy.ExitCodeSuccess, printStatus(os.Stdout, all, nodes)
}

// printStatus writes a table, and beneath it what draining upstreams wait for, what is wrong with the storage, and which
// nodes are missed.
func printStatus(w io.Writer, all []api.Upstream, nodes []api.Node) error {
	if err := printTable(w, all); err != nil {
		return err
	}
	for _, st := range all {
		if st.Addresses > 1 {
			source, _ := api.Source(st.Address)
			printable.Fprintf(w, "\n%s: this name has %d addresses, and a page and its websocket meet by luck; if they are several servers,"+
				" find each by itself (in place of the address: dynamic %s; where each has an address of IPv4 and one of IPv6, with a block that says versions ipv4)\n",
				st.Address, st.Addresses, source)
		}
	}
	for _, st := range all {
		if st.Drain == nil {
			continue
		}
		printable.Fprintf(w, "\n%s: draining %s\n", st.Address, drainText(st.Drain))
		for _, wait := range st.WaitingFor {
			printable.Fprintf(w, "  waits for node %s on %s: %s\n", wait.Node, wait.Host, wait.Reason)
		}
	}
	if len(all) == 0 {
		printable.Fprintf(w, "\n%v\n", api.ErrNoneYet)
	}
	for _, n := range nodes {
		printNode(w, n)
	}
	return nil
}

// printTable writes a line for each upstream.
func printTable(w io.Writer, all []api.Upstream) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ADDRESS\tSTATE\tHEALTHY\tSESSIONS\tBUILDING\tWAITING\tCONNECTED\tUNUSED\tOLDEST\tENDED IN 5M\tBUSY\tCLICK")
	for _, st := range all {
		s := st.Sessions
		printable.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%d\t%.0f%%\t%s\n",
			st.Address, st.State, health(&st), st.Total, s.Building, s.Waiting, s.Connected, s.Unused, age(&st), st.EndedRecently, 100*st.Busy, click(&st))
	}
	return table.Flush()
}

// health says whether new sessions go to an upstream, for people.
func health(st *api.Upstream) string {
	switch {
	case !st.InPool():
		return "-"
	case st.Unreachable:
		return "unreachable"
	case st.Failing:
		return "failing"
	case !st.Healthy:
		return "no"
	}
	return "yes"
}

// age returns how old the oldest session of an upstream is, for people.
func age(st *api.Upstream) string {
	if st.Total == 0 {
		return "-"
	}
	return time.Duration(st.Oldest * float64(time.Second)).Truncate(time.Second).String()
}

// click returns within which time half of the answers to clicks came, and 95 % of them, for people.
func click(st *api.Upstream) string {
	if st.Click == nil {
		return "-"
	}
	return wait(st.Click.P50) + " " + wait(st.Click.P95)
}

// wait returns a time in seconds with two digits or three, for people.
func wait(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Second {
		return d.Round(time.Millisecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}

// drainText says since when an upstream drains, by what and why.
func drainText(d *api.Drain) string {
	s := "by the config"
	if d.Marked {
		s = "by the " + d.By
	}
	if d.Since != nil {
		s = fmt.Sprintf("since %s %s", d.Since.Format(time.DateTime), s)
	}
	if d.Reason != "" {
		s += ": " + d.Reason
	}
	if d.Deadline != nil {
		is := "to be closed at"
		if time.Now().After(*d.Deadline) {
			is = "closed since"
		}
		s += fmt.Sprintf("; %s %s", is, d.Deadline.Format(time.DateTime))
	}
	if d.Marked && d.Config {
		s += "; and by the config"
	}
	return s
}

// printNode writes what is to be known of a node: what is wrong with its storage, who waits there, and whether it is missed.
func printNode(w io.Writer, n api.Node) {
	if n.Storage != "" {
		printable.Fprintf(w, "\nthe storage fails on this Caddy; drains said elsewhere may not be seen, and nothing may be called drained"+
			" (mend it; a record that is broken: delete it): %s\n", strings.ReplaceAll(n.Storage, "\n", "; "))
	}
	if n.Waiting > 0 {
		printable.Fprintf(w, "\nvisits at this Caddy that wait for a place, for all servers have max_sessions sessions: %d\n", n.Waiting)
	}
	if n.State == api.NodeOverdue {
		heard := time.Duration(n.Heard * float64(time.Second))
		printable.Fprintf(w, "\nnode %s on %s has not reported for %s: it is dead (then say so: DELETE %s/%s), or cannot write to the storage\n",
			n.Node, n.Host, api.Seconds(heard), api.NodesPath, n.Node)
	}
}
