module github.com/caddy-bokeh/caddy-bokeh/e2e

go 1.26
