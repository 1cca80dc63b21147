// This file holds a Bokeh server.

package stack

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"time"
)

// startLimit is how long a server may take to start; it imports a lot.
const startLimit = 60 * time.Second

// Bokeh is one bokeh serve process with the counter app.
type Bokeh struct {
	*Process
	Port int
}

// BokehConfig says how to start a Bokeh server.
type BokehConfig struct {
	Port int
	Args []string // for bokeh serve
	Env  []string
	Echo io.Writer // gets its output as well, if not nil
}

// StartBokeh starts a server and waits until it answers.
func (py Python) StartBokeh(root string, c BokehConfig) (*Bokeh, error) {
	if err := Free(c.Port); err != nil {
		return nil, err
	}
	name := fmt.Sprint(":", c.Port)
	args := append([]string{
		"-m", "bokeh", "serve", filepath.Join(root, "testdata", "apps", "counter.py"),
		"--address", "127.0.0.1", "--port", strconv.Itoa(c.Port),
	}, c.Args...)
	p, err := start("bokeh "+name, c.Echo, append([]string{"SERVER_NAME=" + name, "PYTHONUNBUFFERED=1"}, c.Env...), string(py), args...)
	if err != nil {
		return nil, err
	}
	b := &Bokeh{Process: p, Port: c.Port}
	// This path makes no session.
	if err := p.Await(startLimit, func() error { return answers(b.Addr(), "/counter/metadata") }); err != nil {
		p.Kill()
		return nil, err
	}
	return b, nil
}

// Addr is what a proxy dials.
func (b *Bokeh) Addr() string { return fmt.Sprint("127.0.0.1:", b.Port) }

// Free says in one line if a port is not, whichever of this machine's addresses it is in use on.
func Free(port int) error {
	for _, host := range []string{"127.0.0.1", ""} {
		ln, err := net.Listen("tcp", fmt.Sprint(host, ":", port))
		if err != nil {
			return fmt.Errorf("port %d is in use; end what uses it and try again", port)
		}
		ln.Close()
	}
	return nil
}

// FreePorts finds n ports that nobody uses.
func FreePorts(n int) ([]int, error) {
	var ports []int
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer ln.Close()
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

// answers says whether a GET is answered with 200.
func answers(addr, path string) error {
	client := &http.Client{Timeout: 2 * time.Second}
	res, err := client.Get("http://" + addr + path)
	if err != nil {
		return err
	}
	res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", path, res.Status)
	}
	return nil
}
