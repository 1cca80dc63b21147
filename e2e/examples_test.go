// This file tests the files in examples/.

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

func example(t *testing.T, name string) string {
	t.Helper()
	need(t)
	text, err := os.ReadFile(filepath.Join(kit.root, "examples", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents returns the documents of a YAML file.
func documents(t *testing.T, text string) (docs []map[string]any) {
	t.Helper()
	for dec := yaml.NewDecoder(strings.NewReader(text)); ; {
		var doc map[string]any
		switch err := dec.Decode(&doc); err {
		case nil:
			docs = append(docs, doc)
		case io.EOF:
			return docs
		default:
			t.Fatal(err)
		}
	}
}

// at follows keys and indexes into what was read from YAML.
func at(t *testing.T, v any, path ...any) any {
	t.Helper()
	for _, step := range path {
		switch step := step.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[step]
		case int:
			l, _ := v.([]any)
			if step >= len(l) {
				t.Fatalf("%v: there is no %d", path, step)
			}
			v = l[step]
		}
	}
	if v == nil {
		t.Fatalf("there is no %v", path)
	}
	return v
}

// adapts checks that Caddy takes a Caddyfile, as it stands.
func adapts(t *testing.T, text string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Caddyfile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(kit.caddy, "adapt", "--config", file).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func TestExampleOfANode(t *testing.T) {
	t.Parallel()
	text := example(t, "Caddyfile.node")
	adapts(t, text)
	cmd := exec.Command(kit.caddy, "fmt", "-")
	cmd.Stdin = strings.NewReader(text)
	if formatted, err := cmd.Output(); err != nil || strings.TrimSpace(string(formatted)) != strings.TrimSpace(text) {
		t.Errorf("not formatted (%v); it should be:\n%s", err, formatted)
	}
}

// The commands in the unit are such that the command line takes them.
func TestExampleOfSystemd(t *testing.T) {
	t.Parallel()
	unit := example(t, "bokeh@.service")
	commands := 0
	for line := range strings.Lines(unit) {
		if _, rest, ok := strings.Cut(line, "/usr/bin/caddy "); ok {
			commands++
			args := strings.Fields(regexp.MustCompile(`"[^"]*"`).ReplaceAllString(strings.TrimSuffix(strings.TrimSpace(rest), "'"), "quoted"))
			if out, err := exec.Command(kit.caddy, append(args, "--help")...).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("Usage:")) {
				t.Errorf("%v: %v %s", args, err, out)
			}
		}
	}
	if commands != 2 {
		t.Errorf("%d commands were found, want 2", commands)
	}
	// What ends a server waits for people where one runs, and for nobody where it has crashed.
	stop := regexp.MustCompile(`(?m)^ExecStop=-/bin/sh -c '([^']+)'$`).FindStringSubmatch(unit)
	if stop == nil {
		t.Fatal("ExecStop is not as expected")
	}
	for pid, want := range map[string]string{"": "", "4711": "bokeh drain localhost:5006 --wait --force --timeout 8h --reason systemd stops it\n"} {
		script := strings.NewReplacer("/usr/bin/caddy", "echo", "%i", "5006").Replace(stop[1])
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = append(os.Environ(), "MAINPID="+pid)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("with MAINPID=%q: %v %q, want %q", pid, err, out, want)
		}
	}
}

// Every metric that an alert asks for is served.
func TestExampleOfAlerts(t *testing.T) {
	t.Parallel()
	text := example(t, "alerts.yaml")
	rules := at(t, documents(t, text)[0], "groups", 0, "rules").([]any)
	if len(rules) < 5 {
		t.Errorf("there are %d rules", len(rules))
	}
	f := start(t, plan{})
	f.visit().click(1)
	f.bokeh("drain", f.servers[0].Addr()).wait()
	_, served, err := f.ask("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range regexp.MustCompile(`caddy_bokeh_\w+`).FindAllString(text, -1) {
		if !strings.Contains(served, "\n"+name+"{") && !strings.Contains(served, "\n"+name+" ") {
			t.Errorf("%s is not served", name)
		}
	}
}

func TestExampleOfKubernetes(t *testing.T) {
	t.Parallel()
	docs := documents(t, example(t, "kubernetes.yaml"))
	adapts(t, at(t, docs[2], "data", "Caddyfile").(string))
	pod := at(t, docs[1], "spec", "template", "spec")
	if grace := at(t, pod, "terminationGracePeriodSeconds").(int); grace < 3600 {
		t.Errorf("pods are given %d seconds", grace)
	}
	// What a pod does before it is stopped, with another port and less patience.
	script := at(t, pod, "containers", 0, "lifecycle", "preStop", "exec", "command", 2).(string)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			if c, err := ln.Accept(); err == nil {
				defer c.Close()
			} else {
				return
			}
		}
	}()
	port := fmt.Sprintf(":%04X ", ln.Addr().(*net.TCPAddr).Port)
	script = strings.Replace(strings.Replace(script, ":138E ", port, 1), "-lt 60", "-lt 3", 1)
	if !strings.Contains(script, port) || !strings.Contains(script, "-lt 3 ") {
		t.Fatal("the script is not as expected: ", script)
	}
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- exec.Command("sh", "-c", script).Run() }()
	select {
	case err := <-done:
		t.Fatal("it ended while somebody was connected: ", err)
	case <-time.After(5 * time.Second):
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(stack.Stretch(20 * time.Second)):
		t.Error("it does not end")
	}
}
