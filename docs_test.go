// This file tests the lines for a Caddyfile that the documents show.

package caddybokeh

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// snippet is a fenced block of a document, in the language of a Caddyfile.
type snippet struct{ where, text string }

// snippets returns the blocks of a document that are a Caddyfile or a part of one. A fence that says more than that is left out: it
// needs another module, or shows a syntax.
func snippets(file, text string) (found []snippet) {
	var block []string
	at := 0
	for i, line := range strings.Split(text, "\n") {
		switch {
		case at == 0 && strings.HasPrefix(line, "```"):
			at = i + 1
			block = []string{line}
		case at == 0:
		case line != "```":
			block = append(block, line)
		default:
			if block[0] == "```caddyfile" {
				found = append(found, snippet{fmt.Sprintf("%s:%d", file, at), strings.Join(block[1:], "\n") + "\n"})
			}
			at = 0
		}
	}
	return found
}

// places are where the lines of a document may stand in a Caddyfile.
var places = []string{
	"%s",
	"http://localhost {\n%s}\n",
	"http://localhost {\nreverse_proxy localhost:5006 localhost:5007 {\n%s}\n}\n",
}

// validate loads a snippet as a Caddyfile, with a storage of its own, and starts nothing.
func (s snippet) validate(place, storage string) error {
	cfg, err := adapt(fmt.Sprintf(place, s.text))
	if err != nil {
		return err
	}
	var c caddy.Config
	if err := json.Unmarshal(cfg, &c); err != nil {
		return err
	}
	c.StorageRaw, err = json.Marshal(map[string]string{"module": "file_system", "root": storage})
	if err != nil {
		return err
	}
	if c.Logging == nil {
		c.Logging = &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{WriterRaw: []byte(`{"output": "discard"}`)}}}}
	}
	return caddy.Validate(&c)
}

// What the documents show can be copied: Caddy takes it, in one of the places where such lines stand.
func TestDocumentsShowWhatCaddyTakes(t *testing.T) {
	forget(t)
	t.Setenv("BOKEH_SECRET_KEY", "a key")
	t.Setenv("ADMIN_PASSWORD_HASH", "$2a$14$Zkx19XLiW6VYouLHR5NmfOFU0z2GTNmpkT/5qqR7hx4IjWJPDhjvG")
	files, err := filepath.Glob("docs/*.md")
	if err != nil || len(files) == 0 {
		t.Fatal("no documents", err)
	}
	storage, tried := storageDir(t), 0
	for _, file := range append(files, "README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range snippets(file, string(text)) {
			tried++
			if err := s.tryAll(storage); err != nil {
				t.Errorf("%s is not taken anywhere:\n%v", s.where, err)
			}
		}
	}
	if tried < 15 {
		t.Errorf("only %d snippets were found", tried)
	}
}

// tryAll returns an error unless the snippet can stand somewhere.
func (s snippet) tryAll(storage string) error {
	var errs []error
	for _, place := range places {
		err := s.validate(place, storage)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
