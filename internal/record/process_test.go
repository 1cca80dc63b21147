// This file tests how it is told that a process is gone.

package record

import "testing"

// Of a process of the same machine it can be seen whether it is gone.
func TestProcessOfTheSameMachine(t *testing.T) {
	self := ThisProcess()
	if self.PID == 0 {
		t.Skip("SKIP-REASON: this system does not tell of processes")
	}
	dead := self
	dead.Started = "1"
	none := self
	none.PID = 1 << 30
	elsewhere := none
	elsewhere.Boot = "another"
	for name, c := range map[string]struct {
		p    Process
		want bool
	}{
		"itself":            {self, false},
		"number used again": {dead, true},
		"no such number":    {none, true},
		"another machine":   {elsewhere, false},
		"unknown":           {Process{}, false},
	} {
		if got := c.p.IsGone(self); got != c.want {
			t.Errorf("%s: gone is %v", name, got)
		}
	}
}

// A system may hide the processes of other users, which are there all the same.
func TestHiddenProcess(t *testing.T) {
	self := ThisProcess()
	if self.PID == 0 {
		t.Skip("SKIP-REASON: this system does not tell of processes")
	}
	none := self
	none.PID = 1 << 30
	defer func(before string) { proc = before }(proc)
	proc = t.TempDir()
	if self.IsGone(self) {
		t.Error("a process that is hidden is gone")
	}
	if !none.IsGone(self) {
		t.Error("a process that is not there may be hidden")
	}
}
