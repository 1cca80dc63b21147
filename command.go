// This file holds the command line: caddy bokeh status, drain, undrain and storage-check.

package caddybokeh

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// What the commands exit with, beside 0 and 1: as timeout(1) and shells do.
const (
	exitTimeout     = 124
	exitInterrupted = 130
)

const (
	// pollPause is how often --wait asks. Each time is a request of its own, so that Caddy may reload
	// or restart meanwhile.
	pollPause = time.Second

	// plainPause is how often --wait says at least that it is still waiting, where there is no terminal.
	plainPause = 30 * time.Second

	// answerWait is how long the admin API may take to answer.
	answerWait = 15 * time.Second

	// restartWait is how long --wait tries to reach a Caddy before anything is marked.
	restartWait = 10 * time.Second
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "bokeh",
		Usage:     "<command>",
		Short:     "Shows the Bokeh servers behind Caddy, and takes them out of service",
		CobraFunc: buildCommand,
	})
}

// buildCommand adds the commands to the one named bokeh.
func buildCommand(cmd *cobra.Command) {
	cmd.Long = `
Shows the upstreams of every reverse_proxy that has 'lb_policy bokeh', as
'bokeh_proxy' does, and takes them out of service without cutting anyone off.

The commands talk to the admin API of a running Caddy. It tells of all Caddys
that share a storage, and what is said to one of them holds for all.`
	flags := cmd.PersistentFlags()
	flags.String("address", "", "The address of the administration listener, if different from config")
	flags.StringP("config", "c", "", "Configuration file to find the administration listener in")
	flags.StringP("adapter", "a", "", "Name of config adapter to apply (when --config is used)")

	status := &cobra.Command{
		Use:   "status",
		Short: "Shows every known upstream, its state and its sessions",
		Long: `
Shows every known upstream: its state, its sessions on all Caddys that share a
storage, how old the oldest is, how many ended in the last five minutes; and
for a draining one what it still waits for.

A state is ready, draining (no new session, keeps its own), drained (draining,
and certainly empty), closed (past its grace period: nothing goes there), gone
(in no pool, kept for its sessions) or unknown (the storage could not be read
since Caddy started).`,
		Example: `  $ caddy bokeh status
  $ caddy bokeh status --json | jq -r '.[] | select(.state == "drained").address'`,
		Args: cobra.NoArgs,
	}
	status.Flags().Bool("json", false, "Print what the admin API answers")
	status.RunE = withArgs(commandStatus)

	drain := &cobra.Command{
		Use:   "drain <address>...",
		Short: "Lets upstreams keep their sessions and get no other",
		Long: `
Marks upstreams as draining: they get no new session and keep their own. The
mark is kept in Caddy's storage: it outlives reloads and restarts, and holds on
every Caddy that shares the storage. 'caddy bokeh undrain' takes it back.

With --grace-period upstreams are closed when that is over: nothing goes there
any more, and what is still under way there ends, over 30 seconds. Browsers
reconnect to other servers, which run the app anew. Without it nobody is ever
cut off.

With --wait the command returns when every one of them is drained: no session
is left there, through any Caddy, and none can come. Then the server can be
stopped. It goes on waiting while Caddy reloads or restarts.

Exits with 0 when done, 1 on an error, 124 when the --timeout is over, and 130
when interrupted (SIGINT or SIGTERM). Whatever was marked by then goes on
draining; after an error the message names it.`,
		Example: `  $ caddy bokeh drain localhost:5006 --wait && systemctl stop bokeh@5006
  $ caddy bokeh drain 10.0.0.7:5006 10.0.0.8:5006 --wait --timeout 8h --reason 'new version'
  $ caddy bokeh drain localhost:5006 --grace-period 8h --wait`,
		Args: cobra.MinimumNArgs(1),
	}
	drain.Flags().Bool("wait", false, "Return when the upstreams are drained")
	drain.Flags().String("timeout", "", "How long to wait at most, like 90s, 8h or 2d (with --wait; default: for ever)")
	drain.Flags().String("grace-period", "", "Close the upstreams after this time, like 30m or 8h (default: never; 0 takes it back)")
	drain.Flags().String("reason", "", "Why, to be shown with the status")
	drain.Flags().Bool("force", false, "Drain also what is not known, and the last upstream that takes new sessions")
	drain.RunE = withArgs(commandDrain)

	undrain := &cobra.Command{
		Use:   "undrain <address>...",
		Short: "Lets draining upstreams get new sessions again",
		Long: `
Takes back what 'caddy bokeh drain' said. Upstreams on the drain line of a config
go on draining until they are taken off it.`,
		Example: `  $ caddy bokeh undrain localhost:5006`,
		Args:    cobra.MinimumNArgs(1),
	}
	undrain.Flags().String("reason", "", "Why, to be shown in the log")
	undrain.RunE = withArgs(commandUndrain)

	check := &cobra.Command{
		Use:   "storage-check",
		Short: "Tries whether Caddy's storage can do what drains need",
		Long: `
Lets the running Caddy try the storage of its config: whether records that it
stores can be loaded, replaced, listed, locked and deleted. Not every storage
module lists as the others do; where Caddys do not find each other's records,
no server is ever called drained. What is tried is deleted again.

Exits with 0 if the storage can do all that, and 1 if not.`,
		Example: `  $ caddy bokeh storage-check
  $ caddy bokeh storage-check --address unix//run/caddy/admin.sock`,
		Args: cobra.NoArgs,
	}
	check.RunE = withArgs(commandCheck)

	cmd.Args = cobra.NoArgs // or an unknown command would be help, and success
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(status, drain, undrain, check)
}

// withArgs hands the arguments on, which Caddy's wrapper does only by the flags. What it does with an error is to log the text as it
// is, and that may be what others wrote.
func withArgs(f func(caddycmd.Flags, []string) (int, error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			code, err := f(fl, args)
			return code, printable.Error(err)
		})(cmd, args)
	}
}

func commandStatus(fl caddycmd.Flags, _ []string) (int, error) {
	admin, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var raw json.RawMessage
	if err := admin.do(context.Background(), http.MethodGet, api.UpstreamsPath, nil, &raw); err != nil {
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
	if err := admin.do(context.Background(), http.MethodGet, api.NodesPath, nil, &nodes); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if len(all) == 0 && nodes[0].Policies == 0 {
		return caddy.ExitCodeFailedStartup, api.ErrNoPolicy
	}
	return caddy.ExitCodeSuccess, printStatus(os.Stdout, all, nodes)
}

// say is how the commands write: as fmt.Fprintf, but what is filled in is made printable.
func say(w io.Writer, format string, args ...any) {
	harmless := make([]any, len(args))
	for i, arg := range args {
		switch x := arg.(type) {
		case string:
			harmless[i] = printable.Text(x)
		case error:
			harmless[i] = printable.Text(x.Error())
		case fmt.Stringer:
			harmless[i] = printable.Text(x.String())
		default:
			harmless[i] = arg
		}
	}
	fmt.Fprintf(w, format, harmless...)
}

// printStatus writes a table, and beneath it what draining upstreams wait for, what is wrong with the storage, and which
// nodes are missed.
func printStatus(w io.Writer, all []api.Upstream, nodes []api.Node) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "ADDRESS\tSTATE\tHEALTHY\tSESSIONS\tBUILDING\tWAITING\tCONNECTED\tUNUSED\tOLDEST\tENDED IN 5M")
	for _, st := range all {
		healthy := "yes"
		switch {
		case !st.InPool():
			healthy = "-"
		case st.Unreachable:
			healthy = "unreachable"
		case st.Failing:
			healthy = "failing"
		case !st.Healthy:
			healthy = "no"
		}
		s := st.Sessions
		say(table, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\t%d\n",
			st.Address, st.State, healthy, st.Total, s.Building, s.Waiting, s.Connected, s.Unused, age(&st), st.EndedRecently)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, st := range all {
		if st.Addresses > 1 {
			source, _ := api.Source(st.Address)
			say(w, "\n%s: this name has %d addresses, and a page and its websocket meet by luck; if they are several servers,"+
				" find each by itself (in place of the address: dynamic %s; where each has an address of IPv4 and one of IPv6, with a block that says versions ipv4)\n",
				st.Address, st.Addresses, source)
		}
	}
	for _, st := range all {
		if st.Drain == nil {
			continue
		}
		say(w, "\n%s: draining %s\n", st.Address, drainText(st.Drain))
		for _, wait := range st.WaitingFor {
			say(w, "  waits for node %s on %s: %s\n", wait.Node, wait.Host, wait.Reason)
		}
	}
	if len(all) == 0 {
		say(w, "\n%v\n", api.ErrNoneYet)
	}
	for _, n := range nodes {
		if n.Storage != "" {
			say(w, "\nthe storage fails on this Caddy; drains said elsewhere may not be seen, and nothing may be called drained"+
				" (mend it; a record that is broken: delete it): %s\n", strings.ReplaceAll(n.Storage, "\n", "; "))
		}
		if n.Waiting > 0 {
			say(w, "\nvisits at this Caddy that wait for a place, for all servers have max_sessions sessions: %d\n", n.Waiting)
		}
		if n.State == api.NodeOverdue {
			heard := time.Duration(n.Heard * float64(time.Second))
			say(w, "\nnode %s on %s has not reported for %s: it is dead (then say so: DELETE %s/%s), or cannot write to the storage\n",
				n.Node, n.Host, api.Seconds(heard), api.NodesPath, n.Node)
		}
	}
	return nil
}

// drainText says since when, by what and why.
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

// age returns how old the oldest session of an upstream is, for people.
func age(st *api.Upstream) string {
	if st.Total == 0 {
		return "-"
	}
	return time.Duration(st.Oldest * float64(time.Second)).Truncate(time.Second).String()
}

func commandDrain(fl caddycmd.Flags, addresses []string) (int, error) {
	timeout, err := timeoutOf(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	admin, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	query := ""
	if fl.Bool("force") {
		query = "?force=true"
	}
	body := bodyOf(fl)
	if value := fl.String("grace-period"); value != "" {
		grace, err := caddy.ParseDuration(value)
		if err != nil || grace < 0 {
			return caddy.ExitCodeFailedStartup, fmt.Errorf("malformed --grace-period %q: it is a duration, like 30m or 8h, or 0", value)
		}
		body["grace_period"] = grace.String()
	}
	if fl.Bool("wait") {
		admin.awaitCaddy(ctx)
	}
	if !fl.Bool("force") { // or a typo in the last address would be found when the others drain
		err := admin.know(ctx, addresses)
		if ctx.Err() != nil {
			return exitInterrupted, errors.New("interrupted; nothing was marked")
		}
		if err != nil {
			if _, ok := errors.AsType[saidError](err); ok {
				err = fmt.Errorf("%w (--force marks an address that nobody knows yet)", err)
			}
			return caddy.ExitCodeFailedStartup, err
		}
	}
	names, err := admin.mark(ctx, http.MethodPut, query, body, addresses)
	if ctx.Err() != nil {
		return exitInterrupted, fmt.Errorf("interrupted; what was being marked may drain, caddy bokeh status shows it: %w", err)
	}
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if !fl.Bool("wait") {
		return caddy.ExitCodeSuccess, nil
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return admin.awaitDrained(ctx, newProgress(os.Stderr), names)
}

// bodyOf returns what is said beside which upstreams.
func bodyOf(fl caddycmd.Flags) map[string]any {
	body := make(map[string]any)
	if reason := fl.String("reason"); reason != "" {
		body["reason"] = reason
	}
	return body
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

func commandUndrain(fl caddycmd.Flags, addresses []string) (int, error) {
	admin, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	if _, err := admin.mark(context.Background(), http.MethodDelete, "", bodyOf(fl), addresses); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	return caddy.ExitCodeSuccess, nil
}

func commandCheck(fl caddycmd.Flags, _ []string) (int, error) {
	admin, err := newAdminClient(fl)
	if err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var check api.StorageCheck
	if err := admin.do(context.Background(), http.MethodPost, api.StorageCheckPath, nil, &check); err != nil {
		return caddy.ExitCodeFailedStartup, err
	}
	var nodes []api.Node
	if err := admin.do(context.Background(), http.MethodGet, api.NodesPath, nil, &nodes); err != nil {
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
	say(w, "storage: %s\n\n", check.Storage)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range check.Steps {
		result := "ok"
		if !s.OK {
			result = "FAILED"
		}
		took := time.Duration(s.Seconds * float64(time.Second)).Round(10 * time.Microsecond)
		say(table, "%s\t%s\t%v\t%s\n", s.Name, result, took, s.Note)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, s := range check.Steps {
		if !s.OK {
			say(w, "\n%s: %s\n  so %s\n", s.Name, strings.ReplaceAll(s.Error, "\n", "; "), s.Means)
		}
	}
	if len(nodes) > 0 && nodes[0].Policies == 0 {
		say(w, "\n%v, so it keeps nothing in it and looks for nobody there\n", api.ErrNoPolicy)
		return nil
	}
	fmt.Fprintln(w, "\nCaddys that this one finds in it:")
	for _, n := range nodes {
		self := ""
		if n.Self {
			self = " (this one)"
		}
		say(w, "  %s on %s: %s%s\n", n.Node, n.Host, n.State, self)
	}
	return nil
}

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
	ctx, cancel := context.WithTimeout(ctx, answerWait)
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

// awaitCaddy waits for a moment where no Caddy answers: it may be restarting, and whoever waits for a drain
// waits for that as well.
func (c *adminClient) awaitCaddy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, restartWait)
	defer cancel()
	for said := false; ; said = true {
		err := c.do(ctx, http.MethodGet, api.NodePath, nil, new(api.Node))
		if _, silent := errors.AsType[silentError](err); !silent {
			return
		}
		if !said {
			say(os.Stderr, "%v; trying for %v\n", err, restartWait)
		}
		select {
		case <-time.After(pollPause / 4):
		case <-ctx.Done():
			return
		}
	}
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
func (c *adminClient) mark(ctx context.Context, method, query string, body map[string]any, addresses []string) (names []string, err error) {
	for _, address := range addresses {
		var st api.Upstream
		if err := c.do(ctx, method, api.DrainingPath+"/"+url.PathEscape(address)+query, body, &st); err != nil {
			if len(names) > 0 {
				err = fmt.Errorf("%w (done before: %s)", err, strings.Join(names, ", "))
			}
			return nil, err
		}
		say(os.Stdout, "%s is %s, with %s\n", st.Address, st.State, api.InWords(st.Total))
		if method == http.MethodPut && !st.InPool() {
			say(os.Stderr, "warning: no Caddy has %s in a pool; if that is a slip, caddy bokeh undrain %s takes it back\n", st.Address, st.Address)
		}
		names = append(names, st.Address)
	}
	return names, nil
}

// awaitDrained returns when the named upstreams are drained, or ctx ends, and how to exit then.
func (c *adminClient) awaitDrained(ctx context.Context, p progress, names []string) (int, error) {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		left, err := c.left(ctx, names)
		switch {
		case err == nil && len(left) == 0:
			p.done("drained: " + strings.Join(names, ", "))
			return caddy.ExitCodeSuccess, nil
		case errors.Is(err, errNotDraining):
			p.end()
			return caddy.ExitCodeFailedStartup, err
		case ctx.Err() != nil: // that the answer did not come any more is no trouble
		case err != nil:
			p.trouble(err)
		default:
			p.show(left)
		}
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		p.end()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return exitTimeout, fmt.Errorf("the time is up; the drain stays on; still there: %s", p.last())
		}
		return exitInterrupted, fmt.Errorf("interrupted; the drain stays on, caddy bokeh undrain takes it back: %s", strings.Join(names, " "))
	}
}

var errNotDraining = errors.New("is not draining any more; somebody has taken it back")

// left returns those of the named upstreams that are not drained.
func (c *adminClient) left(ctx context.Context, names []string) (left []api.Upstream, err error) {
	var all []api.Upstream
	if err := c.do(ctx, http.MethodGet, api.UpstreamsPath, nil, &all); err != nil {
		return nil, err
	}
	known := make(map[string]api.Upstream)
	read := len(all) > 0 // whether Caddy has read the marks since it started
	for _, st := range all {
		known[st.Address] = st
		read = read && st.State != api.StateUnknown
	}
	for _, name := range names {
		switch st := known[name]; {
		case !read:
			return nil, fmt.Errorf("no word of %s at present", name)
		case st.Drain == nil:
			return nil, fmt.Errorf("%s %w", name, errNotDraining)
		case st.State != api.StateDrained:
			left = append(left, st)
		}
	}
	return left, nil
}

// progress shows how a drain goes on.
type progress interface {
	show(left []api.Upstream)
	trouble(err error) // that may pass
	done(text string)
	end()         // before an error is written
	last() string // what was shown last
}

// newProgress returns a bar for a terminal, and lines for all else.
func newProgress(f *os.File) progress {
	if term.IsTerminal(int(f.Fd())) {
		return &bar{w: f, fd: int(f.Fd())}
	}
	return &lines{w: f}
}

// describe says in words what is left.
func describe(left []api.Upstream) string {
	parts := make([]string, 0, len(left))
	for _, st := range left {
		part := fmt.Sprintf("%s at %s", api.InWords(st.Total), st.Address)
		switch {
		case st.Total > 0:
			part += fmt.Sprintf(", the oldest of %s", age(&st))
		case len(st.WaitingFor) > 0:
			w := st.WaitingFor[0]
			part += fmt.Sprintf(", waiting for node %s on %s: %s", w.Node, w.Host, w.Reason)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

func totalOf(left []api.Upstream) (sum int64) {
	for _, st := range left {
		sum += st.Total
	}
	return sum
}

// bar is a progress bar: of the sessions at the start, how many are left.
type bar struct {
	w     io.Writer
	fd    int
	bar   *progressbar.ProgressBar
	first int64
	text  string
}

func (b *bar) show(left []api.Upstream) {
	now := totalOf(left)
	if b.bar == nil {
		b.first = now
		b.bar = progressbar.NewOptions64(max(b.first, 1),
			progressbar.OptionSetWriter(b.w),
			progressbar.OptionSetWidth(20),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionSetElapsedTime(true),
			progressbar.OptionShowCount(),
		)
	}
	b.text = describe(left)
	b.describe(b.text)
	_ = b.bar.Set64(max(b.first-now, 0))
}

func (b *bar) trouble(err error) {
	if b.bar != nil {
		b.describe("still waiting: " + err.Error())
	} else {
		say(b.w, "still waiting: %v\n", err)
	}
}

// barRest is what the bar itself takes of a line.
const barRest = 48

// describe writes a text before the bar, as far as both fit in one line.
func (b *bar) describe(text string) {
	text = printable.Text(text)
	if width, _, err := term.GetSize(b.fd); err == nil && utf8.RuneCountInString(text) > width-barRest {
		text = string([]rune(text)[:max(width-barRest-1, 10)]) + "…"
	}
	b.bar.Describe(text)
}

func (b *bar) done(text string) {
	b.end()
	say(b.w, "%s\n", text)
}

func (b *bar) end() {
	if b.bar != nil {
		_ = b.bar.Exit()
		fmt.Fprintln(b.w)
	}
}

func (b *bar) last() string { return b.text }

// lines says what is left whenever that changes, and from time to time.
type lines struct {
	w    io.Writer
	text string
	sum  int64
	at   time.Time
}

func (l *lines) show(left []api.Upstream) {
	l.text = describe(left)
	if sum := totalOf(left); sum != l.sum || time.Since(l.at) >= plainPause {
		l.sum = sum
		l.write(l.text)
	}
}

func (l *lines) write(text string) {
	l.at = time.Now()
	say(l.w, "%s\n", text)
}

func (l *lines) trouble(err error) {
	if time.Since(l.at) >= plainPause || l.at.IsZero() {
		l.write("still waiting: " + err.Error())
	}
}

func (l *lines) done(text string) { l.write(text) }
func (l *lines) end()             {}
func (l *lines) last() string     { return l.text }
