// This file holds the Python environment: made once, in the project's build folder.

package stack

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// NoPythonError says that no Python is new enough.
type NoPythonError struct {
	oldest int    // that would do, of Python 3
	given  string // by the environment, if one was
}

func (e *NoPythonError) Error() string {
	if e.given != "" {
		return fmt.Sprintf("PYTHON=%s is no Python 3.%d or newer with its venv module", e.given, e.oldest)
	}
	return fmt.Sprintf("no Python 3.%d or newer with its venv module was found; install one (Debian: python3 and python3-venv) or set PYTHON", e.oldest)
}

// oldestPython is what Bokeh runs on. A file of requirements that needs a newer one says so as needsPython has it.
const oldestPython = 10

var needsPython = regexp.MustCompile(`Python 3\.(\d+) or newer`)

// Root is the project's folder.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "selector.go")); err == nil {
			return dir, nil
		}
	}
	return "", errors.New("not in a clone of caddy-bokeh")
}

// Python is an interpreter with Bokeh installed.
type Python string

// NewPython returns the Python environment with what a file in e2e lists, which it makes unless it is there.
func NewPython(ctx context.Context, root, requirements string) (Python, error) {
	requirements = filepath.Join(root, "e2e", requirements)
	text, err := os.ReadFile(requirements)
	if err != nil {
		return "", err
	}
	oldest := oldestPython
	if found := needsPython.FindSubmatch(text); found != nil {
		oldest, _ = strconv.Atoi(string(found[1]))
	}
	base, version, err := findPython(oldest)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(append(text, base...))
	dir := filepath.Join(root, ".build", fmt.Sprintf("venv-%s-%x", version, sum[:4]))
	python := Python(filepath.Join(dir, "bin", "python"))
	unlock, err := lock(dir + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	// A half-made environment lacks the mark, which comes last.
	mark := filepath.Join(dir, "complete")
	if _, err := os.Stat(mark); err == nil {
		return python, nil
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if out, err := exec.CommandContext(ctx, base, "-m", "venv", dir).CombinedOutput(); err != nil {
		return "", failure(ctx, "cannot make a virtual environment with "+base, out)
	}
	// Most of what it would compile is never imported.
	out, err := exec.CommandContext(ctx, string(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile", "--requirement", requirements).CombinedOutput()
	if err != nil {
		return "", failure(ctx, "pip cannot install what "+filepath.Base(requirements)+" lists; is there a network", out)
	}
	return python, os.WriteFile(mark, nil, 0o600)
}

// lock keeps two processes from making the same thing at once.
func lock(path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

// findPython returns the newest Python that can make an environment, if that is new enough. It asks each: the name of
// a program does not say whether it runs.
func findPython(oldest int) (program, version string, err error) {
	best := oldest - 1
	for _, candidate := range candidates() {
		out, err := exec.Command(candidate, "-c", "import sys, venv, ensurepip; print(sys.version_info.major, sys.version_info.minor)").Output()
		if err != nil {
			continue
		}
		var major, minor int
		if _, err := fmt.Sscan(string(out), &major, &minor); err == nil && major == 3 && minor > best {
			program, best = candidate, minor
		}
	}
	if program == "" {
		return "", "", &NoPythonError{oldest, os.Getenv("PYTHON")}
	}
	return program, "3." + strconv.Itoa(best), nil
}

func candidates() []string {
	if p := os.Getenv("PYTHON"); p != "" {
		return []string{p}
	}
	names := []string{"python3"}
	for minor := 10; minor < 20; minor++ {
		names = append(names, fmt.Sprint("python3.", minor))
	}
	// pyenv's own programs refuse to run for versions that are not switched on.
	if root, err := exec.Command("pyenv", "root").Output(); err == nil {
		installed, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(root)), "versions", "3.*", "bin", "python3"))
		names = append(names, installed...)
	}
	return names
}

// failure says why a program failed: somebody ended us, or what it said last.
func failure(ctx context.Context, what string, out []byte) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, l := range slices.Backward(lines) {
		if strings.HasPrefix(l, "ERROR") {
			return fmt.Errorf("%s: %s", what, l)
		}
	}
	return fmt.Errorf("%s: %s", what, lines[len(lines)-1])
}
