// This file holds Caddy with the module in it.

package stack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// BuildCaddy builds Caddy from the project, without C as xcaddy does, and returns the program.
func BuildCaddy(ctx context.Context, root string) (string, error) {
	program := filepath.Join(root, ".build", "caddy")
	return program, build(ctx, root, program)
}

// build builds Caddy from a folder with the project's files.
func build(ctx context.Context, folder, program string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", program, "./cmd/caddy")
	cmd.Dir = folder
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("go is missing, which builds Caddy")
		}
		return failure(ctx, "cannot build Caddy", out)
	}
	return nil
}

// NoHistoryError says that the project's history does not have a commit here.
type NoHistoryError struct {
	commit, why string
}

func (e *NoHistoryError) Error() string {
	return fmt.Sprintf("the git history here does not have commit %.7s (%s); clone the whole of it, with git", e.commit, e.why)
}

// BuildCaddyOf builds Caddy as it was at a commit, unless that was done before, and returns the program. Where the history does not have
// the commit, the error is a NoHistoryError.
func BuildCaddyOf(ctx context.Context, root, commit string) (string, error) {
	program := filepath.Join(root, ".build", "caddy-"+commit)
	unlock, err := lock(program + ".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	git := exec.CommandContext(ctx, "git", "cat-file", "-e", commit+"^{commit}")
	git.Dir = root
	if out, err := git.CombinedOutput(); err != nil {
		return "", &NoHistoryError{commit, strings.TrimSpace(cmp.Or(string(out), err.Error()))}
	}
	tree, err := os.MkdirTemp("", "caddy-bokeh")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tree)
	archive := filepath.Join(tree, "files.tar")
	for _, unpack := range [][]string{{"git", "archive", "--output", archive, commit}, {"tar", "-x", "-f", archive, "-C", tree}} {
		cmd := exec.CommandContext(ctx, unpack[0], unpack[1:]...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", failure(ctx, "cannot unpack the files of "+commit, append(out, err.Error()...))
		}
	}
	// Half a program, of a build that was interrupted, is not taken for one.
	if err := build(ctx, tree, program+".new"); err != nil {
		return "", err
	}
	return program, os.Rename(program+".new", program)
}

// Caddy is a running Caddy.
type Caddy struct {
	*Process
	program string
	home    string
	admin   string
}

// CaddyConfig says how to start Caddy.
type CaddyConfig struct {
	Program   string
	Caddyfile string    // the text
	Home      string    // where it keeps its storage and config
	Admin     string    // the address of its admin endpoint, as in the Caddyfile
	Ready     string    // an address and a path that answer 200 when it is ready
	Env       []string  // beside ours
	Echo      io.Writer // gets its output as well, if not nil
}

// StartCaddy starts Caddy and waits until it answers.
func StartCaddy(c CaddyConfig) (*Caddy, error) {
	caddy := &Caddy{program: c.Program, home: c.Home, admin: c.Admin}
	file, err := caddy.write(c.Caddyfile)
	if err != nil {
		return nil, err
	}
	env := append([]string{"XDG_DATA_HOME=" + c.Home, "XDG_CONFIG_HOME=" + c.Home}, c.Env...)
	caddy.Process, err = Start("caddy", c.Echo, env, c.Program, "run", "--adapter", "caddyfile", "--config", file)
	if err != nil {
		return nil, err
	}
	if c.Ready == "" {
		return caddy, nil
	}
	err = caddy.Await(20*time.Second, func() error { return answers(c.Ready, "") })
	if err != nil {
		caddy.Kill()
		return nil, err
	}
	return caddy, nil
}

func (c *Caddy) write(caddyfile string) (string, error) {
	file := filepath.Join(c.home, "Caddyfile")
	return file, os.WriteFile(file, []byte(caddyfile), 0o600)
}

// Reload loads another config, as caddy reload does.
func (c *Caddy) Reload(caddyfile string) error {
	file, err := c.write(caddyfile)
	if err != nil {
		return err
	}
	out, err := exec.Command(c.program, "reload", "--adapter", "caddyfile", "--config", file, "--address", c.admin).CombinedOutput()
	if err != nil {
		return failure(context.Background(), "caddy reload", out)
	}
	return nil
}
