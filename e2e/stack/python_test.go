// This file tests the search for a Python.

package stack

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a file of requirements says of Python is kept: pip would only say that it cannot find a package.
func TestPythonIsTooOld(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(t.TempDir(), "python")
	if err := os.WriteFile(old, []byte("#!/bin/sh\necho 3 11\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PYTHON", old)
	_, err = NewPython(t.Context(), root, "requirements-stacks.txt")
	if _, ok := errors.AsType[*NoPythonError](err); !ok || !strings.Contains(err.Error(), "3.12") {
		t.Errorf("Python 3.11 is found to be: %v", err)
	}
}
