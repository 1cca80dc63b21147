// This file tests that a Caddy that ends in good order says so, in a process of its own, though its storage closes first.

package caddybokeh

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/certmagic"

	"github.com/caddy-bokeh/caddy-bokeh/internal/api"
)

func init() {
	caddy.RegisterModule(new(closingStorage))
}

var errStorageClosed = errors.New("the client is closed")

// closingStorage is a storage in files, which is closed when its config ends: as the client of a database is.
type closingStorage struct {
	Root   string `json:"root"`
	files  certmagic.FileStorage
	closed atomic.Bool
}

func (*closingStorage) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.storage.test_closing", New: func() caddy.Module { return new(closingStorage) }}
}

func (s *closingStorage) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	if !d.Args(&s.Root) {
		return d.ArgErr()
	}
	return nil
}

func (s *closingStorage) Provision(caddy.Context) error {
	s.files.Path = s.Root
	return nil
}

func (s *closingStorage) Cleanup() error {
	s.closed.Store(true)
	return nil
}

func (s *closingStorage) CertMagicStorage() (certmagic.Storage, error) { return s, nil }

func (s *closingStorage) Store(ctx context.Context, key string, value []byte) error {
	if s.closed.Load() {
		return errStorageClosed
	}
	return s.files.Store(ctx, key, value)
}

func (s *closingStorage) Load(ctx context.Context, key string) ([]byte, error) {
	if s.closed.Load() {
		return nil, errStorageClosed
	}
	return s.files.Load(ctx, key)
}

func (s *closingStorage) Delete(ctx context.Context, key string) error {
	if s.closed.Load() {
		return errStorageClosed
	}
	return s.files.Delete(ctx, key)
}

func (s *closingStorage) List(ctx context.Context, prefix string, recursive bool) ([]string, error) {
	if s.closed.Load() {
		return nil, errStorageClosed
	}
	return s.files.List(ctx, prefix, recursive)
}

func (s *closingStorage) Exists(ctx context.Context, key string) bool {
	return s.files.Exists(ctx, key)
}

func (s *closingStorage) Stat(ctx context.Context, key string) (certmagic.KeyInfo, error) {
	return s.files.Stat(ctx, key)
}

func (s *closingStorage) Lock(ctx context.Context, name string) error { return s.files.Lock(ctx, name) }

func (s *closingStorage) Unlock(ctx context.Context, name string) error {
	return s.files.Unlock(ctx, name)
}

// Modules are cleaned up in any order: a farewell that comes too late is there every other time.
func TestFarewellAtExit(t *testing.T) {
	b := newBokeh(t, "")
	for name, ends := range map[string]struct {
		options string
		end     func(t *testing.T, p *os.Process, admin string)
	}{
		"SIGTERM":            {"", func(_ *testing.T, p *os.Process, _ string) { _ = p.Signal(syscall.SIGTERM) }},
		"SIGINT, with grace": {`"grace_period": "1s",`, func(_ *testing.T, p *os.Process, _ string) { _ = p.Signal(os.Interrupt) }},
		"POST /stop": {"", func(t *testing.T, _ *os.Process, admin string) {
			if res, err := http.Post("http://"+admin+"/stop", "", nil); err == nil {
				res.Body.Close()
			} else {
				t.Error(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, admin := storageDir(t), freeAddr(t)
			s := &site{t: t, addr: freeAddr(t), client: http.DefaultClient}
			second := freeAddr(t)
			config := filepath.Join(dir, "caddy.json")
			text := fmt.Sprintf(`{
				"admin": {"listen": %q, "config": {"persist": false}},
				"storage": {"module": "test_closing", "root": %q},
				"apps": {"http": {%s "servers": {
					"a": {"listen": [%q], "automatic_https": {"disable": true}, "max_header_bytes": 65536, "routes": [{"handle": [
						{"handler": "reverse_proxy", "upstreams": [{"dial": %q}], "load_balancing": {"selection_policy": {"policy": "bokeh"}}}
					]}]},
					"b": {"listen": [%q], "automatic_https": {"disable": true}}
				}}}
			}`, admin, dir, ends.options, s.addr, b.addr(), second)
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0], "run", "--config", config)
			cmd.Env = append(os.Environ(), asCaddy+"=1", "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = cmd.Process.Kill() }()
			soon(t, "there is a report", func() bool { return len(reportsIn(t, dir)) == 1 })
			_, w := s.visit() // whose socket is open at the end
			defer w.Close()
			ends.end(t, cmd.Process, admin)
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			for _, r := range reportsIn(t, dir) {
				if !r.Left {
					t.Errorf("the last report is no farewell: %+v", r)
				}
			}
		})
	}
}

// reportsIn returns the reports in a storage of files.
// nodeReport is what is read here of what a node reports.
type nodeReport struct {
	Seq  uint64
	Left bool

	Sessions api.Counts
}

func reportsIn(t *testing.T, dir string) (reports []nodeReport) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash("caddy-bokeh/nodes"), "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var r nodeReport
		if err := json.Unmarshal(text, &r); err != nil {
			t.Fatal(err)
		}
		reports = append(reports, r)
	}
	return reports
}

// A config without a policy, loaded while a session is open, leaves the node in a storage that is open: its own.
func TestConfigWithoutAPolicyInCaddy(t *testing.T) {
	b := newBokeh(t, "")
	dir := storageDir(t)
	s := newSite(t, dir)
	s.config = strings.Replace(s.config, "storage file_system", "storage test_closing", 1)
	s.start("reverse_proxy " + b.addr() + " {\n lb_policy bokeh\n stream_close_delay 1h\n}")
	n := thisNode()
	_, w := s.visit()
	s.reload("respond ok")
	soon(t, "there is a report", func() bool { return len(reportsIn(t, dir)) == 1 })
	before := reportsIn(t, dir)
	s.reload("respond again")
	soon(t, "it reports on", func() bool {
		now := reportsIn(t, dir)
		return len(now) == 1 && now[0].Seq > before[0].Seq
	})
	if st := n.Self(); st.Storage != "" || st.Sessions.All() != 1 {
		t.Errorf("it tells of itself: %+v", st)
	}
	w.Close()
}
