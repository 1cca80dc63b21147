// Command caddy is Caddy with the Bokeh session policy in it, for go build and go run.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	// The modules a stock Caddy has, and ours.
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-bokeh/caddy-bokeh"
)

func main() {
	caddycmd.Main()
}
