// This file holds the command: which works and peers, in which order, and where the results go.

// Command bench starts Bokeh servers and one balancer after another before them, all with the same work, and says
// behind which a visitor's page is ready soonest.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func command(ctx context.Context) error {
	b := &bench{}
	peerNames := flag.String("peers", "", "which `peers`, with commas between them (all)")
	workNames := flag.String("works", "", "which `works` (all)")
	count := flag.Int("count", 5, "how often each peer does each work")
	out := flag.String("out", "bench/results", "`folder` of the raw results")
	cold := flag.Bool("cold", false, "measure only crowds of browsers that have none of Bokeh's scripts, with and without bokeh_files")
	draw := flag.Bool("draw", false, "only draw what the raw results hold")
	readme := flag.Bool("readme", false, "write the tables into docs/benchmarks.md and bench/results/README.md, and the plot into bench")
	seed := flag.Uint64("seed", 1, "of the first repetition")
	flag.DurationVar(&b.warmUp, "warm-up", 4*time.Second, "how long a run goes on before it is measured")
	flag.DurationVar(&b.measured, "measured", 6*time.Second, "how long it is measured")
	flag.Parse()

	// Where Debian has HAProxy and nginx, and users do not look.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin"); err != nil {
		return err
	}
	root, err := stack.Root()
	if err != nil {
		return err
	}
	if !filepath.IsAbs(*out) {
		*out = filepath.Join(root, *out)
	}
	chosen, err := chooseWorks(*workNames)
	if err != nil {
		return err
	}
	if *draw {
		return report(root, *out, chosen, *readme)
	}
	b.root = root
	usual, err := choosePeers(*peerNames)
	if err != nil {
		return err
	}
	if b.caddy, err = stack.BuildCaddy(ctx, root); err != nil {
		return err
	}
	revision, err := revisionOf(root)
	if err != nil {
		return fmt.Errorf("which revision is this: %w", err)
	}
	if *cold {
		return b.cold(ctx, *out, revision, *count)
	}
	c := comparison{bench: b, count: *count, seed: *seed, revision: revision, folder: *out, versions: map[string]string{}}
	if err := c.find(usual); err != nil {
		return err
	}
	for _, w := range chosen {
		if err := c.compare(ctx, w, *peerNames == ""); err != nil {
			return err
		}
	}
	return report(root, *out, chosen, *readme)
}

// revisionOf names the commit that is measured. What was measured before it, and is not committed yet, changes nothing.
func revisionOf(root string) (string, error) {
	commit, err := said("git", "-C", root, "rev-parse", "--short", "HEAD")
	if err != nil {
		return "", err
	}
	changed, err := said("git", "-C", root, "status", "--porcelain", "--", ".", ":!bench/results")
	if err != nil {
		return "", err
	}
	if changed != "" {
		commit += "-dirty"
	}
	return commit, nil
}

// report prints the tables, draws the plot beside the results, and writes the documents anew if it is to.
func report(root, folder string, chosen []*work, readme bool) error {
	all, err := read(folder, chosen)
	if err != nil {
		return err
	}
	for _, s := range all {
		s.print()
	}
	printVerdict(all)
	svg := filepath.Join(folder, "peers.svg")
	if readme {
		svg = filepath.Join(root, "bench", "peers.svg")
		if err := updateReadme(filepath.Join(root, "docs", "benchmarks.md"), folder, all); err != nil {
			return err
		}
	}
	// What peers cost is not drawn.
	if !slices.ContainsFunc(all, func(s *summary) bool { return s.work.comparesPeers() }) {
		return nil
	}
	return drawPlot(svg, all)
}

// chooseWorks returns the works of these names, or all.
func chooseWorks(names string) (chosen []*work, err error) {
	for name := range strings.FieldsFuncSeq(names, isSeparator) {
		i := slices.IndexFunc(works, func(w work) bool { return w.name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no work %s", name)
		}
		chosen = append(chosen, &works[i])
	}
	if len(chosen) > 0 {
		return chosen, nil
	}
	for i := range works {
		chosen = append(chosen, &works[i])
	}
	return chosen, nil
}
