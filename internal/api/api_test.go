// This file tests that answers and bodies keep their form: whoever reads them was written for it.

package api

import (
	"encoding/json"
	"testing"
	"time"
)

func TestForm(t *testing.T) {
	at := time.Date(2025, 1, 2, 3, 4, 5, 0, time.UTC)
	text := "30m"
	counts := Counts{Building: 1, Waiting: 2, Connected: 3, Unused: 4}
	held := Holding{Sessions: counts, Total: counts.All(), Oldest: 1.5, EndedRecently: 5}
	const sessions = `"sessions":{"building":1,"waiting":2,"connected":3,"unused":4}`
	const holding = sessions + `,"total_sessions":10,"oldest_session_seconds":1.5,"sessions_ended_in_5m":5`
	const none = `"sessions":{"building":0,"waiting":0,"connected":0,"unused":0}`
	for want, value := range map[string]any{
		`{"address":"a:1","state":"draining","unreachable":true,"failing":true,"healthy":true,"full":true,"num_requests":6,"fails":7,"busy":0.5,"click":{"p50_seconds":0.25,"p95_seconds":1.5},"addresses":8,` +
			holding + `,"drain":{"config":true,"marked":true,"since":"2025-01-02T03:04:05Z","by":"b","reason":"r","deadline":"2025-01-02T03:04:05Z"},` +
			`"nodes":[{"node":"n","host":"h","in_pool":true,` + holding + `}],"waiting_for":[{"node":"n","host":"h","reason":"r"}]}`: Upstream{
			Address: "a:1", State: StateDraining, Unreachable: true, Failing: true, Healthy: true, Full: true, NumRequests: 6, Fails: 7, Addresses: 8,
			Busy: .5, Click: &Click{P50: .25, P95: 1.5},
			Holding: held, Drain: &Drain{Config: true, Marked: true, Since: &at, By: "b", Reason: "r", Deadline: &at},
			Nodes: []NodeShare{{Node: "n", Host: "h", InPool: true, Holding: held}}, WaitingFor: []Wait{{Node: "n", Host: "h", Reason: "r"}},
		},
		`{"address":"","state":"","unreachable":false,"failing":false,"healthy":false,"full":false,"num_requests":0,"fails":0,"busy":0,` +
			none + `,"total_sessions":0,"oldest_session_seconds":0,"sessions_ended_in_5m":0,"nodes":null}`: Upstream{},
		`{"config":false,"marked":false}`: Drain{},
		`{"node":"n","host":"h","self":true,"state":"up","last_heard_seconds":0.5,` + sessions + `,"storage_error":"s","policies":1,"visits_waiting":2}`: Node{
			Node: "n", Host: "h", Self: true, State: NodeUp, Heard: 0.5, Sessions: counts, Storage: "s", Policies: 1, Waiting: 2,
		},
		`{"node":"","host":"","self":false,"state":"","last_heard_seconds":0,` + none + `,"visits_waiting":0}`: Node{},
		`{"storage":"s","ok":true,"steps":[{"name":"n","ok":true,"seconds":0.5,"error":"e","means":"m","note":"o"},{"name":"","ok":false,"seconds":0}]}`: StorageCheck{
			Storage: "s", OK: true, Steps: []CheckStep{{Name: "n", OK: true, Seconds: 0.5, Error: "e", Means: "m", Note: "o"}, {}},
		},
		`{"reason":"r","grace_period":"30m","span":"30m"}`: DrainRequest[string]{Reason: "r", GracePeriod: &text, Span: &text},
		`{}`: DrainRequest[string]{},
	} {
		got, err := json.Marshal(value)
		if err != nil || string(got) != want {
			t.Errorf("it is %s %v, want %s", got, err, want)
		}
	}
}

func TestWords(t *testing.T) {
	for sessions, want := range map[int64]string{0: "0 sessions", 1: "1 session", 2: "2 sessions"} {
		if got := InWords(sessions); got != want {
			t.Errorf("%d are %q, want %q", sessions, got, want)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", time.Nanosecond: "1s", time.Second: "1s", time.Minute + time.Millisecond: "1m1s"} {
		if got := Seconds(d); got != want {
			t.Errorf("%v are %q, want %q", d, got, want)
		}
	}
	for name, want := range map[string]string{"app:5006": "a app 5006", "[fd00::9]:80": "a fd00::9 80"} {
		if got, ok := Source(name); got != want || !ok {
			t.Errorf("the source of %s is %q %v, want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"unix//run/app.sock", "unix//run/app:1", "app"} {
		if got, ok := Source(name); ok || got != "# "+name+" has no name that could be looked up" {
			t.Errorf("the source of %s is %q", name, got)
		}
	}
}
