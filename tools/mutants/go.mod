// The mutation tests: `make mutants`. No tool that there is does what they need (see mutate.go), and this one needs no other module.
module github.com/caddy-bokeh/caddy-bokeh/tools/mutants

go 1.26.0
