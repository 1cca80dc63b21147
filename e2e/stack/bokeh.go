// This file holds a Bokeh server.

package stack

import (
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// startLimit is how long a server may take to start on a quiet machine; it imports a lot.
const startLimit = 60 * time.Second

// Requirements is the file that lists what Bokeh needs.
const Requirements = "requirements.txt"

// Bokeh is one server process with the counter app.
type Bokeh struct {
	*Process
	Port int
}

// BokehConfig says how to start a Bokeh server.
type BokehConfig struct {
	Port    int
	Program []string // the module that is the server, and its arguments before the port; bokeh serve with the counter app, if empty
	Args    []string // after the port
	Ready   string   // a path that answers when it is ready, and makes no session; a file that Bokeh servers have, if empty
	Env     []string
	Echo    io.Writer // gets its output as well, if not nil
}

// aFile is one that every server has. It makes no session.
const aFile = "/static/js/bokeh.min.js"

// StartBokeh starts a server and waits until it answers.
func (py Python) StartBokeh(root string, c BokehConfig) (*Bokeh, error) {
	name := fmt.Sprint(":", c.Port)
	program := c.Program
	if len(program) == 0 {
		program = []string{"bokeh", "serve", filepath.Join(root, "testdata", "apps", "counter.py"), "--address", "127.0.0.1"}
	}
	args := slices.Concat([]string{"-m"}, program, []string{"--port", strconv.Itoa(c.Port)}, c.Args)
	env := append([]string{"SERVER_NAME=" + name, "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1"}, c.Env...)
	p, err := Start(program[0]+" "+name, c.Echo, env, string(py), args...)
	if err != nil {
		return nil, err
	}
	b := &Bokeh{Process: p, Port: c.Port}
	if err := p.Await(startLimit, func() error { return answers(b.Addr(), cmp.Or(c.Ready, aFile)) }); err != nil {
		p.Kill()
		return nil, err
	}
	return b, nil
}

// Addr is what a proxy dials.
func (b *Bokeh) Addr() string { return fmt.Sprint("127.0.0.1:", b.Port) }

// Free says in one line if a port is not, whichever of this machine's addresses it is in use on. Ask before any process
// is started: between fork and exec a child holds every socket that is open, and the port of a closed one seems in use.
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

// given are the ports that FreePorts has found: what is to use one may not have started yet when the next are looked for.
var given struct {
	mu    sync.Mutex // guards all below
	ports map[int]bool
}

// FreePorts finds n ports that nobody uses, each once, below those that systems give to whoever asks for any: a connection
// that a browser opens must not take one before its server does.
func FreePorts(n int) ([]int, error) {
	const low, high = 20000, 32000
	given.mu.Lock()
	defer given.mu.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	var ports []int
	for range 100 * n {
		if len(ports) == n {
			break
		}
		port := low + rand.IntN(high-low)
		if !given.ports[port] && Free(port) == nil {
			given.ports[port] = true
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, fmt.Errorf("cannot find %d free ports from %d to %d", n, low, high)
	}
	return ports, nil
}

// answers says whether a GET is answered with 200.
func answers(addr, path string) error {
	client := &http.Client{Timeout: Stretch(2 * time.Second)}
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
