// This file holds the order of the runs: all peers once, in an order by chance, then all again.

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
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
		if present && wanted && w.suits(p.name) {
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
		begun := 0
		for group := range slices.Chunk(order, w.atOnce()) {
			begun += len(group)
			fmt.Fprintf(os.Stderr, "\r\033[K%s, %d of %d: %s (%d of %d) ", w.name, i+1, c.count, group[0].name, begun, len(order))
			all, err := c.once(ctx, w, group, seed)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil:
				fmt.Fprintf(os.Stderr, "left out: %v\n", err)
				continue
			}
			for j, p := range group {
				if err := c.keep(file, w, p, i, all[j]); err != nil {
					return err
				}
			}
		}
	}
	fmt.Fprint(os.Stderr, "\r\033[K")
	return nil
}

// keep writes what came of a repetition.
func (c *comparison) keep(file io.Writer, w *work, p peer, repetition int, n numbers) error {
	return json.NewEncoder(file).Encode(record{
		Work: w.name, Peer: p.name, Version: c.versions[p.name], Repetition: repetition, Seed: c.seed + uint64(repetition), Revision: c.revision,
		Date: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), numbers: n,
	})
}

// once lets a group of peers do a work, again if the machine was too busy.
func (c *comparison) once(ctx context.Context, w *work, group []peer, seed uint64) ([]numbers, error) {
	all, _, err := calmest(tries, lagLimit, func() ([]numbers, error) { return c.together(ctx, w, group, seed) })
	return all, err
}

// together lets a group of peers do a work at the same time. What else the machine does then weighs on all of them.
func (c *comparison) together(ctx context.Context, w *work, group []peer, seed uint64) ([]numbers, error) {
	all, errs := make([]numbers, len(group)), make([]error, len(group))
	var done sync.WaitGroup
	for i, p := range group {
		done.Go(func() {
			switch {
			case w.idle:
				all[i], errs[i] = c.memory(ctx, w, p)
			case !w.attack.empty():
				all[i], errs[i] = c.attacked(ctx, w, p, seed)
			default:
				all[i], errs[i] = c.run(ctx, w, p, seed)
			}
		})
	}
	done.Wait()
	return all, errors.Join(errs...)
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
