// This file tests the Caddyfile syntax by golden files, and the shipped Caddyfile.

package caddybokeh

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

var update = flag.Bool("update", false, "write the golden files anew")

// Each file holds a Caddyfile and, below a line of dashes, the JSON or the error it becomes.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/adapt/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			golden, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			const dashes = "----------\n"
			config, want, _ := strings.Cut(string(golden), dashes)
			got := adapted(t, config)
			if *update {
				if err := os.WriteFile(file, []byte(config+dashes+got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func adapted(t *testing.T, config string) string {
	t.Helper()
	cfg, err := adapt(config)
	if err != nil {
		return err.Error() + "\n"
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, cfg, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return pretty.String() + "\n"
}

// The Caddyfile that the documents name is formatted, and loads.
func TestShippedCaddyfile(t *testing.T) {
	config, err := os.ReadFile("testdata/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	if formatted := caddyfile.Format(config); !bytes.Equal(formatted, config) {
		t.Errorf("not formatted; it should be:\n%s", formatted)
	}
	cfg, err := adapt(string(config))
	if err != nil {
		t.Fatal(err)
	}
	var c caddy.Config
	if err := json.Unmarshal(cfg, &c); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&c); err != nil {
		t.Error(err)
	}
}

// The lines that keep ids out of logs are proven by the end-to-end tests as the Caddyfile has
// them, so the document must show the same.
func TestReferenceShowsTheLogFilter(t *testing.T) {
	filter := func(file string) string {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, ok := strings.Cut(string(text), "format filter {")
		if !ok {
			t.Fatalf("%s has no log filter", file)
		}
		words := strings.Fields(rest)
		depth := 1
		for i, w := range words {
			switch w {
			case "{":
				depth++
			case "}":
				depth--
			}
			if depth == 0 {
				return strings.Join(words[:i], " ")
			}
		}
		t.Fatalf("the log filter of %s does not end", file)
		return ""
	}
	if shown, shipped := filter("docs/reference.md"), filter("testdata/Caddyfile"); shown != shipped {
		t.Errorf("shown:\n%s\nCaddyfile:\n%s", shown, shipped)
	}
}

// What the Caddyfile refuses, JSON must not let in.
func TestValidate(t *testing.T) {
	for name, s := range map[string]*Selection{
		"session_ids":             {SessionIDs: "random"},
		"unused_session_lifetime": {UnusedSessionLifetime: caddy.Duration(15 * time.Millisecond)},
		"check_unused_sessions":   {CheckUnusedSessions: -1},
		"check_unused_sessions ":  {CheckUnusedSessions: caddy.Duration(2_000_000 * time.Hour)},
		"drain {env.SERVER}":      {Drain: []string{"{env.SERVER}"}},
		"exactly one port":        {Drain: []string{"localhost:5006", "localhost:5007-5009"}},
		`drain ""`:                {Drain: []string{""}},
		`drain "localhost:five"`:  {Drain: []string{"localhost:five"}},
	} {
		s.setDefaults()
		if err := s.Validate(); err == nil || !strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := new(Selection)
	s.setDefaults()
	if err := s.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}
