// This file lets Caddy's command line have the command bokeh.

package caddybokeh

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/caddy-bokeh/caddy-bokeh/internal/cli"
)

func init() {
	caddycmd.RegisterCommand(cli.Command())
}
