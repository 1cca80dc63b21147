// This file holds a child process: started in a group of its own, its output kept, ended for certain.

// Package stack runs the real parts for the demo and the end-to-end tests: a Python environment,
// Bokeh servers, Caddy.
package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// stopWait is how long a process has to end by itself before it is killed, on a quiet machine.
const stopWait = 5 * time.Second

// Process is a running program.
type Process struct {
	Name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended
	err  error         // how, set before done is closed
}

// Start runs a program. Its output is kept, and written to echo as well if that is not nil.
func Start(name string, echo io.Writer, env []string, program string, args ...string) (*Process, error) {
	p := &Process{Name: name, cmd: exec.Command(program, args...), out: &output{echo: echo}, done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.SysProcAttr = ownGroup()
	// A grandchild that holds our pipe must not hold us.
	p.cmd.WaitDelay = Stretch(stopWait)
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Pid is the number of the process, which is that of its group as well.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Err says how the process ended, once it has.
func (p *Process) Err() error { return p.err }

// Signal sends a signal to the process and its children.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
		return syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}

// Stop ends the process, politely at first.
func (p *Process) Stop() {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(Stretch(stopWait)):
		p.Kill()
	}
}

// Kill ends the process at once.
func (p *Process) Kill() {
	_ = p.Signal(syscall.SIGKILL)
	<-p.done
}

// Output is all that the process has written so far.
func (p *Process) Output() string { return p.out.String() }

// Await waits until ready returns nil, for as long as the process lives and at most for the given time of a quiet machine.
func (p *Process) Await(limit time.Duration, ready func() error) error {
	patience, end := Patience(context.Background(), limit)
	defer end()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended (%w); it said last: %s", p.Name, errors.Join(p.err, err), p.out.last())
		case <-patience.Done():
			return fmt.Errorf("%s is not ready after %v: %w", p.Name, limit, err)
		case <-tick.C:
		}
	}
}

// output keeps what a process writes.
type output struct {
	mu   sync.Mutex // guards all below
	buf  bytes.Buffer
	echo io.Writer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.echo != nil {
		_, _ = o.echo.Write(b)
	}
	return o.buf.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// last returns the last line.
func (o *output) last() string {
	lines := bytes.Split(bytes.TrimSpace([]byte(o.String())), []byte("\n"))
	return string(lines[len(lines)-1])
}
