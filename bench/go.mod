module github.com/caddy-bokeh/caddy-bokeh/bench

go 1.26.0

replace github.com/caddy-bokeh/caddy-bokeh/e2e => ../e2e

require (
	github.com/caddy-bokeh/caddy-bokeh/e2e v0.0.0-00010101000000-000000000000
	github.com/coder/websocket v1.8.15
	github.com/jedib0t/go-pretty/v6 v6.8.3
	github.com/prometheus/procfs v0.23.0
	gonum.org/v1/gonum v0.17.0
)

require (
	github.com/mattn/go-runewidth v0.0.16 // indirect
	github.com/rivo/uniseg v0.4.7 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.23.0 // indirect
)
