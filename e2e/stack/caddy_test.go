// This file tests how a Caddy of before is built.

package stack

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// Where the history does not have a commit, as in a shallow clone, or there is none, as in an unpacked archive, that is what is said.
func TestHistoryIsMissing(t *testing.T) {
	const commit = "0123456789012345678901234567890123456789"
	shallow, unpacked := t.TempDir(), t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "git", "init", "--quiet", shallow).CombinedOutput(); err != nil {
		t.Skip("SKIP-REASON:", err, string(out))
	}
	for _, root := range []string{shallow, unpacked} {
		_, err := BuildCaddyOf(t.Context(), root, commit)
		if _, ok := errors.AsType[*NoHistoryError](err); !ok || !strings.Contains(err.Error(), "does not have commit 0123456") {
			t.Errorf("what is said is: %v", err)
		} else {
			t.Log(err)
		}
	}
}
