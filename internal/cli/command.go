// Package cli is the command line: caddy bokeh status, drain, undrain and storage-check. It asks the admin API of a running Caddy, of
// which it knows no more than package api tells.
//
// This file holds the commands as they are typed, and their help.
package cli

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// What the commands exit with, beside 0 and 1: as timeout(1) and shells do.
const (
	exitTimeout     = 124
	exitInterrupted = 130
)

// Command returns the command named bokeh, for Caddy's command line. It writes to standard output what was asked for and to standard
// error how a drain goes on; what else goes wrong is in the errors that its subcommands return.
func Command() caddycmd.Command {
	return caddycmd.Command{
		Name:      "bokeh",
		Usage:     "<command>",
		Short:     "Shows the Bokeh servers behind Caddy, and takes them out of service",
		CobraFunc: buildCommand,
	}
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

	cmd.Args = cobra.NoArgs // or an unknown command would be help, and success
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(statusCommand(), drainCommand(), undrainCommand(), checkCommand())
}

// statusCommand returns caddy bokeh status.
func statusCommand() *cobra.Command {
	cmd := &cobra.Command{
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
	cmd.Flags().Bool("json", false, "Print what the admin API answers")
	cmd.RunE = withArgs(commandStatus)
	return cmd
}

// drainCommand returns caddy bokeh drain.
func drainCommand() *cobra.Command {
	cmd := &cobra.Command{
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
	cmd.Flags().Bool("wait", false, "Return when the upstreams are drained")
	cmd.Flags().String("timeout", "", "How long to wait at most, like 90s, 8h or 2d (with --wait; default: for ever)")
	cmd.Flags().String("grace-period", "", "Close the upstreams after this time, like 30m or 8h (default: never; 0 takes it back)")
	cmd.Flags().String("reason", "", "Why, to be shown with the status")
	cmd.Flags().Bool("force", false, "Drain also what is not known, and the last upstream that takes new sessions")
	cmd.RunE = withArgs(commandDrain)
	return cmd
}

// undrainCommand returns caddy bokeh undrain.
func undrainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undrain <address>...",
		Short: "Lets draining upstreams get new sessions again",
		Long: `
Takes back what 'caddy bokeh drain' said. Upstreams on the drain line of a config
go on draining until they are taken off it.`,
		Example: `  $ caddy bokeh undrain localhost:5006`,
		Args:    cobra.MinimumNArgs(1),
	}
	cmd.Flags().String("reason", "", "Why, to be shown in the log")
	cmd.RunE = withArgs(commandUndrain)
	return cmd
}

// checkCommand returns caddy bokeh storage-check.
func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
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
	cmd.RunE = withArgs(commandCheck)
	return cmd
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
