// Command demo runs three Bokeh servers behind Caddy, to click at, until Ctrl-C.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// The ports that testdata/Caddyfile names, and that of Caddy's admin endpoint.
var (
	serverPorts = []int{5006, 5007, 5008}
	sitePort    = 8080
	adminPort   = 2019
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	root, err := stack.Root()
	if err != nil {
		return err
	}
	for _, port := range append([]int{sitePort, adminPort}, serverPorts...) {
		if err := stack.Free(port); err != nil {
			return err
		}
	}
	fmt.Println("preparing Python and Bokeh; the first time this takes a minute")
	python, err := stack.NewPython(ctx, root, stack.Requirements)
	if err != nil {
		return err
	}
	fmt.Println("building Caddy")
	program, err := stack.BuildCaddy(ctx, root)
	if err != nil {
		return err
	}
	var d demo
	defer d.stop()
	if err := d.start(ctx, root, python, program); err != nil {
		return err
	}
	fmt.Printf("\n  open http://localhost:%d/counter in several tabs; Ctrl-C ends it all\n\n", sitePort)
	return d.wait(ctx)
}

// demo is the running processes, in the order in which they were started.
type demo struct {
	processes []*stack.Process
	screen    sync.Mutex // one line at a time
}

func (d *demo) start(ctx context.Context, root string, python stack.Python, program string) error {
	for _, port := range serverPorts {
		fmt.Println("starting bokeh serve on port", port)
		b, err := python.StartBokeh(root, stack.BokehConfig{
			Port: port,
			Args: []string{"--allow-websocket-origin", fmt.Sprint("localhost:", sitePort), "--allow-websocket-origin", fmt.Sprint("127.0.0.1:", sitePort)},
			Echo: d.prefixed(fmt.Sprint("bokeh ", port)),
		})
		if err != nil {
			return err
		}
		d.processes = append(d.processes, b.Process)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	config, err := os.ReadFile(filepath.Join(root, "testdata", "Caddyfile"))
	if err != nil {
		return err
	}
	home := filepath.Join(root, ".build", "demo-home")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	caddy, err := stack.StartCaddy(stack.CaddyConfig{
		Program:   program,
		Caddyfile: string(config),
		Home:      home,
		Ready:     fmt.Sprintf("127.0.0.1:%d/counter/metadata", sitePort),
		Echo:      d.prefixed("caddy     "),
	})
	if err != nil {
		return err
	}
	d.processes = append(d.processes, caddy.Process)
	return nil
}

// wait returns when the visitor has had enough, or when a process ends.
func (d *demo) wait(ctx context.Context) error {
	ended := make(chan *stack.Process, len(d.processes))
	for _, p := range d.processes {
		go func() {
			<-p.Done()
			ended <- p
		}()
	}
	select {
	case <-ctx.Done():
		fmt.Println("\nstopping")
		return nil
	case p := <-ended:
		return fmt.Errorf("%s has ended: %v", p.Name, p.Err())
	}
}

// stop ends all processes, Caddy first, so that nobody sees a server go.
func (d *demo) stop() {
	for _, p := range slices.Backward(d.processes) {
		p.Stop()
	}
}

// prefixed returns a writer that puts a name before every line.
func (d *demo) prefixed(name string) io.Writer {
	r, w := io.Pipe()
	go func() {
		for lines := bufio.NewScanner(r); lines.Scan(); {
			d.screen.Lock()
			fmt.Printf("%s │ %s\n", name, short(lines.Bytes()))
			d.screen.Unlock()
		}
		_ = r.Close() // a line too long to show must not hold up who writes it
	}()
	return w
}

// short makes of a line of Caddy's log what a visitor of the demo wants to know of it. Trouble and other programs' lines
// stay as they are.
func short(line []byte) string {
	var entry struct {
		Level, Msg, Decision, Upstream string
		Status                         int
		Request                        struct{ Method, URI string }
	}
	switch {
	case json.Unmarshal(line, &entry) != nil || entry.Level != "info":
		return string(line)
	case entry.Msg == "handled request":
		return fmt.Sprintf("%s %s: %d, %s at %s", entry.Request.Method, entry.Request.URI, entry.Status, entry.Decision, entry.Upstream)
	}
	return entry.Msg
}
