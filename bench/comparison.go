// This file holds the order of the runs: all peers once, in an order by chance, then all again.

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// tries is how often a run is done at most if the machine is too busy with other things.
const tries = 2

// comparison is of all peers that this machine has.
type comparison struct {
	*bench
	count    int
	seed     uint64
	revision string
	folder   string // of the raw results
	usual    []peer
	versions map[string]string // by peer; those that are missing here have none
}

// find sorts out the peers that cannot run here, and says so.
func (c *comparison) find(usual []peer) error {
	for _, p := range peers {
		version, err := p.version(c.bench)
		if err == nil {
			c.versions[p.name] = version
		} else if slices.ContainsFunc(usual, func(u peer) bool { return u.name == p.name }) {
			fmt.Printf("%s is left out: %v\n", p.name, err)
		}
	}
	c.usual = usual
	if len(c.versions) == 0 {
		return errors.New("no peer can run here")
	}
	return nil
}

// at returns the peers that do a work.
func (c *comparison) at(w *work, extra bool) (all []peer) {
	for _, p := range peers {
		_, present := c.versions[p.name]
		wanted := slices.ContainsFunc(c.usual, func(u peer) bool { return u.name == p.name }) ||
			extra && slices.Contains(w.extra, p.name)
		if present && wanted && (p.name != ideal || !w.idle && !w.real) {
			all = append(all, p)
		}
	}
	return all
}

// compare runs all peers at a work and keeps what comes of it.
func (c *comparison) compare(ctx context.Context, w *work, extra bool) error {
	file, err := create(c.folder, w)
	if err != nil {
		return err
	}
	defer file.Close()
	all := c.at(w, extra)
	for i := range c.count {
		seed := c.seed + uint64(i)
		order := slices.Clone(all)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for j, p := range order {
			fmt.Fprintf(os.Stderr, "\r\033[K%s, %d of %d: %s (%d of %d) ", w.name, i+1, c.count, p.name, j+1, len(order))
			n, err := c.once(ctx, w, p, seed)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				fmt.Fprintf(os.Stderr, "left out: %v\n", err)
				continue
			}
			r := record{
				Work: w.name, Peer: p.name, Version: c.versions[p.name], Repetition: i, Seed: seed, Revision: c.revision,
				Date: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), numbers: n,
			}
			if err := json.NewEncoder(file).Encode(r); err != nil {
				return err
			}
		}
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	return nil
}

func (c *comparison) once(ctx context.Context, w *work, p peer, seed uint64) (numbers, error) {
	if w.idle {
		return c.memory(ctx, w, p)
	}
	calmest := numbers{Lag: math.Inf(1)}
	for range tries {
		n, err := c.run(ctx, w, p, seed)
		if err != nil {
			return n, err
		}
		if n.Lag < calmest.Lag {
			calmest = n
		}
		if n.Lag <= lagLimit.Seconds() {
			break
		}
	}
	return calmest, nil
}

func resultFile(folder string, w *work) string { return filepath.Join(folder, w.name+".jsonl") }

func create(folder string, w *work) (*os.File, error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	return os.Create(resultFile(folder, w))
}

// load reads the raw results of a work; there may be none.
func load(folder string, w *work) (all []record, err error) {
	file, err := os.Open(resultFile(folder, w))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("%s: %w", file.Name(), err)
		}
		all = append(all, r)
	}
	return all, lines.Err()
}
