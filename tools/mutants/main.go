// Mutants puts small faults into packages, one at a time, and tells which of them no test notices.
//
//	go -C tools/mutants run . ./internal/breaker             every file of a package, against the tests of that
//	go -C tools/mutants run . ./internal/breaker/breaker.go  one of its files
//
// Paths are of the repository. It fails if less than 85 % of a package's mutants are noticed, and if survivors.txt, which gives the
// reason for each of the others, is not true: if one is missing there, or is there and does not live any more. The work tree stays as
// it is: go build reads a mutant from a folder of its own.
//
// This file runs the mutants and tells what became of them.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// enough is the share of mutants that the tests of each package must kill.
	enough = 0.85

	// A mutant that is at work for ever ends after so many times what the tests need, and some seconds. What counts is the time on the
	// processor, which on a busy machine is the same.
	patience    = 10
	leastToWork = 5 * time.Second

	// One that neither works nor ends is most likely found by the runtime, as a deadlock. This is for what is left.
	leastToWait = time.Minute

	// memory bounds what a mutant may have, in kilobytes of addresses.
	memory = 8 << 20
)

// fate is what became of a mutant.
type fate uint8

const (
	lives     fate = iota
	killed         // a test fails
	endless        // the tests do not end
	stillborn      // it does not compile
	unknown        // the run was interrupted
)

// target is some files of a package.
type target struct {
	dir     string // from the root of the repository, as in internal/breaker
	whole   bool   // these are all files of the package
	files   []string
	mutants []*mutant
	of      map[*mutant]string // the file that it is in
	fates   []fate
	limits  limits
}

// limits are those of one run of the tests.
type limits struct {
	work time.Duration // on the processor
	wait time.Duration
}

// runner runs tests of mutants.
type runner struct {
	root, tmp string
	run       string // of the tests: the regular expression that go test knows
	workers   int
}

func main() {
	r := runner{}
	flag.StringVar(&r.run, "run", "", "run only the `tests` that match")
	flag.IntVar(&r.workers, "workers", runtime.NumCPU(), "run so many at a time")
	list := flag.String("survivors", "tools/mutants/survivors.txt", "the `file` with the reasons")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := r.all(ctx, *list, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// all tries the mutants of all targets, and says whether what it finds is as it should be.
func (r *runner) all(ctx context.Context, list string, targets []string) (ok bool, err error) {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--show-toplevel").Output()
	if err != nil {
		return false, fmt.Errorf("finding the repository: %w", err)
	}
	r.root = strings.TrimSpace(string(out))
	reasons, err := readReasons(filepath.Join(r.root, list))
	if err != nil {
		return false, err
	}
	if r.tmp, err = os.MkdirTemp("", "mutants-"); err != nil {
		return false, err
	}
	defer os.RemoveAll(r.tmp)
	ok = true
	for _, name := range targets {
		t, err := r.target(name)
		if err != nil {
			return false, err
		}
		err = r.try(ctx, t)
		if t.fates != nil { // an interrupted run has found something as well
			ok = t.tell(reasons) && ok
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", name, err)
		}
	}
	return ok, nil
}

// target returns the target that a package or a file is.
func (r *runner) target(name string) (*target, error) {
	t := &target{of: make(map[*mutant]string)}
	path := filepath.Join(r.root, name)
	if filepath.Ext(path) == ".go" {
		t.files = []string{path}
		path = filepath.Dir(path)
	} else {
		t.whole = true
		all, _ := filepath.Glob(filepath.Join(path, "*.go"))
		for _, f := range all {
			if !strings.HasSuffix(f, "_test.go") {
				t.files = append(t.files, f)
			}
		}
	}
	dir, err := filepath.Rel(r.root, path)
	if err != nil {
		return nil, err
	}
	t.dir = filepath.ToSlash(dir)
	for _, f := range t.files {
		source, err := os.ReadFile(f)
		if err != nil {
			return nil, err
		}
		mutants, err := mutantsOf(f, source)
		if err != nil {
			return nil, err
		}
		for _, m := range mutants {
			t.of[m] = f
		}
		t.mutants = append(t.mutants, mutants...)
	}
	if len(t.mutants) == 0 {
		return nil, fmt.Errorf("there is nothing to mutate in %s", name)
	}
	number(t.mutants)
	return t, nil
}

// try finds the fate of each mutant of t.
func (r *runner) try(ctx context.Context, t *target) error {
	start := time.Now()
	if err := r.measure(ctx, t); err != nil {
		return err
	}
	t.fates = make([]fate, len(t.mutants))
	next := make(chan int)
	var workers sync.WaitGroup
	for range r.workers {
		workers.Go(func() {
			for i := range next {
				t.fates[i] = r.fate(ctx, t, i)
			}
		})
	}
	for i := range t.mutants {
		if ctx.Err() != nil {
			break
		}
		next <- i
		if i%25 == 24 {
			fmt.Fprintf(os.Stderr, "%s: %d of %d mutants after %v\n", t.dir, i+1, len(t.mutants), time.Since(start).Round(time.Second))
		}
	}
	close(next)
	workers.Wait()
	return ctx.Err()
}

// measure runs the tests as they are, which must pass, and sets the limits of the others by that.
func (r *runner) measure(ctx context.Context, t *target) error {
	program := filepath.Join(r.tmp, "asis.test")
	if out, err := r.build(ctx, t, program); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	start := time.Now()
	cmd, out := r.tests(ctx, t, program)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the tests fail as they are: %w\n%s", err, out)
	}
	took := time.Since(start)
	work := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	t.limits = limits{patience*work + leastToWork, patience*took + leastToWait}
	return nil
}

// fate builds a mutant and runs the tests on it.
func (r *runner) fate(ctx context.Context, t *target, i int) fate {
	m := t.mutants[i]
	file := t.of[m]
	source, err := os.ReadFile(file)
	if err != nil {
		return unknown
	}
	base := filepath.Join(r.tmp, fmt.Sprint(i))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{file: base + ".go"}})
	if err != nil {
		return unknown
	}
	program := base + ".test"
	defer os.Remove(program)
	if errors.Join(os.WriteFile(base+".go", m.apply(source), 0o600), os.WriteFile(base+".json", overlay, 0o600)) != nil {
		return unknown
	}
	if _, err := r.build(ctx, t, program, "-overlay", base+".json"); err != nil {
		return stillborn
	}
	ctx, cancel := context.WithTimeout(ctx, t.limits.wait)
	defer cancel()
	cmd, _ := r.tests(ctx, t, program)
	err = cmd.Run()
	exit, _ := errors.AsType[*exec.ExitError](err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return unknown
	case err == nil:
		return lives
	case exit == nil || exit.ExitCode() < 0: // a signal
		return endless
	}
	return killed
}

// build compiles the tests of a target.
func (r *runner) build(ctx context.Context, t *target, program string, flags ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "go", slices.Concat([]string{"test", "-c", "-ldflags=-s -w", "-o", program}, flags, []string{"./" + t.dir})...)
	cmd.Dir = r.root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return cmd.CombinedOutput()
}

// tests returns the command that runs the tests of a target, up to the first that fails, and what it will say. They have no time limit
// of their own: with a timer that runs the runtime finds no deadlock.
func (r *runner) tests(ctx context.Context, t *target, program string) (*exec.Cmd, *bytes.Buffer) {
	limit := fmt.Sprintf("ulimit -v %d; ", memory)
	if t.limits.work > 0 {
		limit += fmt.Sprintf("ulimit -t %.0f; ", t.limits.work.Seconds())
	}
	cmd := exec.CommandContext(ctx, "sh", "-c", limit+`exec "$@"`, "sh", program, "-test.failfast", "-test.timeout=0", "-test.run="+r.run)
	cmd.Dir = filepath.Join(r.root, t.dir)
	out := new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	return cmd, out
}

// tell prints what became of the mutants, and says whether it is as it should be.
func (t *target) tell(reasons map[string]string) (ok bool) {
	var dead, looped, born int
	var survivors []*mutant
	for i, f := range t.fates {
		switch f {
		case stillborn, unknown:
			continue
		case endless:
			looped++
			dead++
		case killed:
			dead++
		case lives:
			survivors = append(survivors, t.mutants[i])
		}
		born++
	}
	share := float64(dead) / float64(max(born, 1))
	fmt.Printf("\n%s: %d of %d mutants killed, %.1f %% (%d by their time, %d more do not compile)\n",
		t.dir, dead, born, 100*share, looped, len(t.mutants)-born)
	ok = share >= enough
	if !ok {
		fmt.Printf("\tthat is less than %.0f %%\n", 100*enough)
	}
	for _, m := range survivors {
		reason := reasons[t.dir+" "+m.name()]
		if reason == "" {
			reason, ok = "NO REASON GIVEN: write a test that fails, or add it to tools/mutants/survivors.txt", false
		}
		file, _ := filepath.Rel(filepath.Dir(filepath.Dir(t.of[m])), t.of[m])
		fmt.Printf("%s:%d\n\t%s\n\t%s\n", file, m.line, m.name(), reason)
	}
	return t.tellStale(reasons) && ok
}

// tellStale names what is in the list of survivors and lives no more.
func (t *target) tellStale(reasons map[string]string) (ok bool) {
	ok = true
	known := make(map[string]bool)
	for i, m := range t.mutants {
		name := t.dir + " " + m.name()
		if _, listed := reasons[name]; listed && t.fates[i] != lives && t.fates[i] != unknown {
			fmt.Printf("\tlisted as a survivor, and killed by now: %s\n", m.name())
			ok = false
		}
		known[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(reasons)) {
		if strings.HasPrefix(name, t.dir+" ") && t.whole && !known[name] {
			fmt.Printf("\tlisted as a survivor, and not there any more: %s\n", name)
			ok = false
		}
	}
	return ok
}

// readReasons reads the list of survivors: a line that names a package and one of its mutants, and a line with a tab and the reason.
func readReasons(file string) (map[string]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	reasons, last := make(map[string]string), []string(nil)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		reason, isReason := strings.CutPrefix(line, "\t")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
			last = nil
		case isReason:
			for _, name := range last {
				reasons[name] = strings.TrimSpace(reasons[name] + " " + reason)
			}
		default:
			last = append(last, line)
		}
	}
	return reasons, nil
}
