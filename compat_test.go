// This file tests that nodes of the version before, on the same storage, are understood, and that what is written now is what they wrote.

package caddybokeh

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
)

// beforeFolder is where the records of the version before are kept; its README says how they were made.
const beforeFolder = "testdata/records"

// What the records are of. Addresses of this machine would have its name with them.
var (
	appServers  = []string{"192.0.2.11:5006", "192.0.2.12:5006", "192.0.2.13:5006", "192.0.2.14:5006", "192.0.2.15:5006", "192.0.2.16:5006"}
	pairServers = []string{"192.0.2.21:5006", "192.0.2.22:5006"}
)

// The settings of the policies, by which a node tells how long it has to wait.
const (
	appsLifetime = time.Second
	pairLifetime = 4 * time.Second
	checkUnused  = time.Second

	// nodeSettles is how long a node waits for browsers that come back.
	nodeSettles = pairLifetime + checkUnused
)

// elsewhere stands for all servers of the records: Caddy reaches them through it, as through a proxy.
type elsewhere struct {
	url string

	mu   sync.Mutex // guards all below
	last string     // the server that the last page or socket was asked of
}

func newElsewhere(t *testing.T) *elsewhere {
	t.Helper()
	b := unstartedBokeh(t, "")
	e := new(elsewhere)
	b.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		e.last = r.URL.Host
		e.mu.Unlock()
		b.ServeHTTP(w, r)
	})
	b.Start()
	e.url = b.URL
	return e
}

// lastAsked returns the server that the last page or socket was asked of.
func (e *elsewhere) lastAsked() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}

// neighbour is a Caddy in a process of its own, whose storage others have too.
type neighbour struct {
	*site
	name  string
	admin string
	cmd   *exec.Cmd
}

// startNeighbour starts a Caddy; one that is unsure has servers in a pool that it does not know yet.
func startNeighbour(t *testing.T, program, storage string, e *elsewhere, unsure bool) *neighbour {
	t.Helper()
	home := t.TempDir()
	n := &neighbour{site: &site{t: t, addr: freeAddr(t), client: &http.Client{Timeout: hangs}}, admin: freeAddr(t)}
	proxy := func(lifetime time.Duration, upstreams string) map[string]any {
		policy := map[string]any{"policy": "bokeh", "unused_session_lifetime": lifetime.String(), "check_unused_sessions": checkUnused.String()}
		h := map[string]any{
			"handler":        "reverse_proxy",
			"load_balancing": map[string]any{"selection_policy": policy},
			"transport":      map[string]any{"protocol": "http", "network_proxy": map[string]any{"from": "url", "url": e.url}},
			// A proxy is told by this where a request goes.
			"headers": map[string]any{"request": map[string]any{"set": map[string]any{"Host": []string{"{http.reverse_proxy.upstream.hostport}"}}}},
		}
		if err := json.Unmarshal([]byte(upstreams), &h); err != nil {
			t.Fatal(err)
		}
		return h
	}
	static := func(addrs []string) string {
		return `{"upstreams": [{"dial": "` + strings.Join(addrs, `"}, {"dial": "`) + `"}]}`
	}
	route := func(path string, handler any) map[string]any {
		return map[string]any{"match": []any{map[string]any{"path": []string{path}}}, "handle": []any{handler}}
	}
	routes := []any{
		route("/app*", proxy(appsLifetime, static(appServers))),
		route("/pair", proxy(pairLifetime, static(pairServers))),
	}
	if unsure {
		routes = append(routes, route("/found", proxy(appsLifetime, // nobody visits, so nobody is asked
			`{"dynamic_upstreams": {"source": "a", "name": "bokeh.example", "port": "5006", "resolver": {"addresses": ["127.0.0.1:1"]}}}`)))
	}
	for n.admin == n.addr {
		n.admin = freeAddr(t)
	}
	text, err := json.Marshal(map[string]any{
		"admin":   map[string]any{"listen": n.admin, "config": map[string]any{"persist": false}},
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"exclude": []string{"admin.api"}}}},
		"storage": map[string]any{"module": "file_system", "root": storage},
		"apps": map[string]any{"http": map[string]any{"servers": map[string]any{"site": map[string]any{
			"listen": []string{n.addr}, "automatic_https": map[string]any{"disable": true}, "max_header_bytes": 64 << 10, "routes": routes,
		}}}},
	})
	config := filepath.Join(home, "caddy.json")
	if err == nil {
		err = os.WriteFile(config, text, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.cmd = exec.CommandContext(t.Context(), program, "run", "--config", config)
	n.cmd.Env = append(os.Environ(), asCaddy+"=1", "XDG_DATA_HOME="+home, "XDG_CONFIG_HOME="+home)
	var out bytes.Buffer
	n.cmd.Stderr = &out
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.end(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("%s wrote:\n%s", program, out.String())
		}
	})
	soon(t, "Caddy answers, and has read the storage", func() bool {
		var self struct {
			Node string
			Err  string `json:"storage_error"`
		}
		status, err := n.tryAsk(http.MethodGet, "/bokeh/node", "", &self)
		n.name = self.Node
		return err == nil && status == http.StatusOK && self.Err == "" && len(readRecords(t, storage)["nodes/"+n.name+".json"]) > 0
	})
	return n
}

// end sends the process a signal and waits until it has ended.
func (n *neighbour) end(signal os.Signal) {
	if n.cmd.ProcessState == nil {
		_ = n.cmd.Process.Signal(signal)
		_ = n.cmd.Wait()
	}
}

// tryAsk sends a request to the admin API and reads the answer.
func (n *neighbour) tryAsk(method, path, body string, into any) (status int, err error) {
	r, err := http.NewRequestWithContext(n.t.Context(), method, "http://"+n.admin+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && into != nil {
		err = json.Unmarshal(text, into)
	}
	return res.StatusCode, err
}

// ask does the same, and the answer must be good.
func (n *neighbour) ask(method, path, body string, into any) {
	n.t.Helper()
	if status, err := n.tryAsk(method, path, body, into); err != nil || status != http.StatusOK {
		n.t.Fatalf("%s %s: %d %v", method, path, status, err)
	}
}

func (n *neighbour) drain(server, body string) {
	n.t.Helper()
	n.ask(http.MethodPut, "/bokeh/draining/"+server, body, nil)
}

func (n *neighbour) undrain(server string) {
	n.t.Helper()
	n.ask(http.MethodDelete, "/bokeh/draining/"+server, "", nil)
}

// readRecords returns what is in our folder of a storage of files, by the names there.
func readRecords(t *testing.T, storage string) map[string]string {
	t.Helper()
	records := map[string]string{}
	folder := os.DirFS(filepath.Join(storage, "caddy-bokeh"))
	_ = fs.WalkDir(folder, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || unfinishedFile.MatchString(d.Name()) {
			return nil
		}
		if text, err := fs.ReadFile(folder, name); err == nil { // else it is not there any more
			records[name] = string(text)
		}
		return nil
	})
	return records
}

// unfinishedFile is the name of a file that is being written, and gets that of a record then.
var unfinishedFile = regexp.MustCompile(`^[0-9]+$`)

// recordHistory is all that was seen of each record in a storage, the newest last.
type recordHistory struct {
	t       *testing.T
	storage string
	seen    map[string][]string
}

// look reads all records.
func (h *recordHistory) look() {
	h.t.Helper()
	for name, text := range readRecords(h.t, h.storage) {
		if !slices.Contains(h.seen[name], text) {
			h.seen[name] = append(h.seen[name], text)
		}
	}
}

// find returns the name and the text of a record in which all the given texts were seen at once; the text is empty if there is none.
func (h *recordHistory) find(parts ...string) (name, text string) {
	for name, texts := range h.seen {
		for _, text := range texts {
			if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) }) {
				return name, text
			}
		}
	}
	return "", ""
}

// await looks until a record is seen in which all the given texts are.
func (h *recordHistory) await(parts ...string) (name, text string) {
	h.t.Helper()
	soon(h.t, fmt.Sprint("there is a record with ", parts), func() bool {
		h.look()
		name, text = h.find(parts...)
		return text != ""
	})
	return name, text
}

// during looks again and again while something is done.
func (h *recordHistory) during(do ...func()) {
	h.t.Helper()
	var all sync.WaitGroup
	for _, f := range do {
		all.Go(f)
	}
	done := make(chan struct{})
	go func() {
		all.Wait()
		close(done)
	}()
	for {
		h.look()
		select {
		case <-done:
			return
		default:
		}
	}
}

// writtenRecords is what two nodes have left in a storage.
type writtenRecords struct {
	*recordHistory
	best   map[string]string // records that said more once than at last, by their names
	stamps map[string]string // one for each of the servers of the app
}

// writeRecords lets two nodes of a program write every kind of record, with everything that can stand in one.
func writeRecords(t *testing.T, program string) *writtenRecords {
	t.Helper()
	e, storage := newElsewhere(t), t.TempDir()
	w := &writtenRecords{recordHistory: &recordHistory{t, storage, map[string][]string{}}, best: map[string]string{}, stamps: map[string]string{}}
	a := startNeighbour(t, program, storage, e, false)
	b := startNeighbour(t, program, storage, e, true)

	// Each server has a session, of which two keep their sockets.
	for len(w.stamps) < len(appServers) {
		p := a.get("/app")
		server := e.lastAsked()
		socket := a.open(p.Token)
		if socket.status != http.StatusSwitchingProtocols || e.lastAsked() != server {
			t.Fatalf("the socket of a page at %s is answered with %d by %s", server, socket.status, e.lastAsked())
		}
		if server != appServers[0] && server != appServers[4] {
			socket.Close()
		}
		w.stamps[server] = sessionIDOf(t, p.Token)
	}
	// So has the other node, where it stays.
	for {
		socket := b.open(b.get("/app").Token)
		defer socket.Close()
		if e.lastAsked() == appServers[4] {
			break
		}
	}

	a.drain(appServers[0], `{"reason": "new release"}`)
	a.drain(appServers[1], `{"reason": "new release", "grace_period": "1h", "span": "1m"}`)
	a.drain(appServers[2], `{"grace_period": "1ms"}`)
	_, drained := w.await(`"upstream":"`+appServers[0], `"draining"`)
	w.await(`"upstream":"`+appServers[2], `"closed"`)

	// A drain that may be taken back yet is soon one that may not, and one that is taken back for another takes luck.
	soon(t, "a drain is seen that may be taken back", func() bool {
		w.during(func() { _, _ = a.tryAsk(http.MethodPut, "/bokeh/draining/"+appServers[5], "", nil) })
		name, unsettled := w.find(`"upstream":"`+appServers[5], `"unsettled":true`)
		if w.best[name] = unsettled; unsettled == "" {
			a.undrain(appServers[5])
		}
		return unsettled != ""
	})
	soon(t, "of two drains one gives way", func() bool {
		w.during(
			func() { _, _ = a.tryAsk(http.MethodPut, "/bokeh/draining/"+pairServers[0], "", nil) },
			func() { _, _ = b.tryAsk(http.MethodPut, "/bokeh/draining/"+pairServers[1], "", nil) },
		)
		w.look()
		_, withdrawn := w.find("-withdrawn")
		if withdrawn == "" {
			a.undrain(pairServers[0])
			b.undrain(pairServers[1])
		}
		return withdrawn != ""
	})

	w.await(`{"node":"`+a.name, `"settled":true`)
	// A server that was closed is told of for as long as browsers come back, which a busy machine may miss.
	all := []string{`{"node":"` + a.name, `"settled":true`, `"heard":{`, `"reopened":true`, `"ended":`, `"oldest":`, `"mark":"` + recordField(t, drained, "id"), `"connected":1`}
	for tries := 5; ; tries-- {
		if tries == 0 {
			t.Fatalf("no report has all of %s", all)
		}
		a.drain(appServers[3], `{"grace_period": "1ms"}`)
		w.look()
		name, _ := w.find(`"upstream":"` + appServers[3])
		w.await(strings.TrimSuffix(recordField(t, w.latest(name), "id"), "-closed") + "-closed")
		a.undrain(appServers[3])
		over := time.Now().Add(nodeSettles)
		var full string
		soon(t, "it is over that the server was closed", func() bool {
			w.look()
			name, full = w.find(all...)
			return full != "" || time.Now().After(over)
		})
		if full != "" {
			w.best[name] = full
			break
		}
	}
	// What is said while a node writes that a server is closed may be overwritten by that, and is written again.
	soon(t, "what was said last is stored", func() bool {
		w.look()
		name, _ := w.find(`"upstream":"` + appServers[3])
		return strings.Contains(readRecords(t, storage)[name], `"ready"`)
	})
	b.end(syscall.SIGTERM)
	w.await(`{"node":"`+b.name, `"left":true`, `"unsure":true`)
	a.end(syscall.SIGKILL)
	w.look()
	return w
}

// latest returns what a record was at last.
func (h *recordHistory) latest(name string) string { return h.seen[name][len(h.seen[name])-1] }

// recordField returns a field of a record.
func recordField(t *testing.T, record, field string) string {
	t.Helper()
	text, _ := parseRecord[map[string]any](t, record)[field].(string)
	return text
}

// sessionIDOf returns the session id in a token.
func sessionIDOf(t *testing.T, token string) string {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		t.Fatal(err)
	}
	return recordField(t, string(payload), "session_id")
}

// keep writes the records to a folder, in the state of the moment when most stood in each, with names that are made up in place of
// those of this machine.
func (w *writtenRecords) keep(folder string) {
	w.t.Helper()
	host, err := os.Hostname()
	if err != nil {
		w.t.Fatal(err)
	}
	nobody := func(text string) string {
		text = strings.NewReplacer(`"host":"`+host+`"`, `"host":"dashboard-1"`, " on "+host+`"`, ` on dashboard-1"`).Replace(text)
		for name, value := range map[string]string{"boot": `"00000000-0000-4000-8000-000000000001"`, "clock": `"00000000-0000-4000-8000-000000000001"`, "namespace": `"pid:[1]"`, "pid": "1001", "started": `"2001"`} {
			text = regexp.MustCompile(`"`+name+`":("[^"]*"|[0-9]+)`).ReplaceAllLiteralString(text, `"`+name+`":`+value)
		}
		return text
	}
	files := map[string]string{}
	for name := range w.seen {
		files["caddy-bokeh/"+name] = nobody(cmp.Or(w.best[name], w.latest(name)))
	}
	stamps, err := json.MarshalIndent(w.stamps, "", "\t")
	files["stamps.json"] = string(stamps) + "\n"
	err = errors.Join(err, os.RemoveAll(filepath.Join(folder, "caddy-bokeh")))
	for name, text := range files {
		name = filepath.Join(folder, filepath.FromSlash(name))
		err = errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644))
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// nodeRecord is what this test needs of the report of a node of the version before.
type nodeRecord struct {
	Node, Host string
	Left       bool
	Upstreams  map[string]struct{ Sessions map[string]int64 }
}

// A node of the version before is understood: what was said to it holds, it is known by what it has, and its sessions are found.
func TestRecordsOfTheVersionBefore(t *testing.T) {
	storage := t.TempDir()
	if err := os.CopyFS(filepath.Join(storage, "caddy-bokeh"), os.DirFS(filepath.Join(beforeFolder, "caddy-bokeh"))); err != nil {
		t.Fatal(err)
	}
	e := newElsewhere(t)
	n := startNeighbour(t, os.Args[0], storage, e, false)
	var alive, gone nodeRecord
	for name, text := range readRecords(t, beforeFolder) {
		if strings.HasPrefix(name, "nodes/") {
			r := parseRecord[nodeRecord](t, text)
			if r.Left {
				gone = r
			} else {
				alive = r
			}
		}
	}

	t.Run("marks", func(t *testing.T) { n.findsMarks(t, alive) })
	t.Run("nodes", func(t *testing.T) { n.findsNodes(t, alive, gone) })
	t.Run("choice", func(t *testing.T) {
		for range 12 {
			n.get("/app")
			if server := e.lastAsked(); server != appServers[3] && server != appServers[4] {
				t.Errorf("a new visit goes to %s, which drains", server)
			}
		}
	})
	t.Run("stamps", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(beforeFolder, "stamps.json"))
		if err != nil {
			t.Fatal(err)
		}
		for server, stamp := range parseRecord[map[string]string](t, string(text)) {
			w := n.open(bokehtest.Token(t, stamp, nil))
			found := e.lastAsked() == server
			if w.status != http.StatusSwitchingProtocols || found == (server == appServers[2]) { // which is closed
				t.Errorf("a socket of %s goes to %s: %d", server, e.lastAsked(), w.status)
			}
		}
	})
	t.Run("key", func(t *testing.T) {
		if was, is := readRecords(t, beforeFolder)["secret_key"], readRecords(t, storage)["secret_key"]; was != is {
			t.Error("the key has been replaced")
		}
	})
}

// findsMarks checks what is told of each server.
func (n *neighbour) findsMarks(t *testing.T, other nodeRecord) {
	type drain struct {
		Marked     bool
		By, Reason string
		Since      time.Time
		Deadline   time.Time
	}
	var told []struct {
		Address, State string
		Drain          drain
		WaitingFor     []struct{ Node, Host, Reason string } `json:"waiting_for"`
	}
	n.ask(http.MethodGet, "/bokeh/upstreams", "", &told)
	marks := map[string]string{}
	for name, text := range readRecords(t, beforeFolder) {
		if !strings.HasPrefix(name, "marks/") {
			continue
		}
		marks[recordField(t, text, "upstream")] = text
	}
	states := map[string]string{
		appServers[0]: "draining", appServers[1]: "draining", appServers[2]: "closed", appServers[3]: "ready", appServers[4]: "ready", appServers[5]: "draining",
	}
	for _, st := range told {
		if want, app := states[st.Address]; app && st.State != want {
			t.Errorf("%s is %s, want %s", st.Address, st.State, want)
		}
		delete(states, st.Address)
		var want drain
		if mark := marks[st.Address]; mark != "" && recordField(t, mark, "state") != "ready" {
			said := parseRecord[struct {
				By, Reason     string
				Since, Written time.Time
				Left           time.Duration
			}](t, mark)
			want = drain{true, said.By, said.Reason, said.Since, time.Time{}}
			if said.Left != 0 {
				want.Deadline = said.Written.Add(said.Left)
			}
		}
		if st.Drain != want {
			t.Errorf("of the drain of %s it is told: %+v, want %+v", st.Address, st.Drain, want)
		}
		waits := map[string]bool{}
		for _, w := range st.WaitingFor {
			waits[w.Node+" on "+w.Host+": "+w.Reason] = true
		}
		theirs := other.Upstreams[st.Address].Sessions["connected"]
		if reason := other.Node + " on dashboard-1: it has 1 session"; want.Marked && waits[reason] != (theirs == 1) {
			t.Errorf("the other node has %d sessions at %s, and what is waited for is %v", theirs, st.Address, waits)
		}
	}
	if len(states) > 0 {
		t.Errorf("nothing is told of %v", states)
	}
}

// findsNodes checks what is told of the other nodes: one that may be alive, and one that has said that it is gone.
func (n *neighbour) findsNodes(t *testing.T, alive, gone nodeRecord) {
	type node struct {
		Node, Host, State string
		Sessions          map[string]int64
	}
	var told []node
	of := func(name string) node {
		n.ask(http.MethodGet, "/bokeh/nodes", "", &told)
		return told[slices.IndexFunc(told, func(st node) bool { return st.Node == name })]
	}
	for _, r := range []nodeRecord{alive, gone} {
		want := map[string]int64{}
		for _, u := range r.Upstreams {
			for state, count := range u.Sessions {
				want[state] += count
			}
		}
		if st := of(r.Node); st.Host != "dashboard-1" || !maps.Equal(st.Sessions, want) || want["connected"] == 0 {
			t.Errorf("of a node with %v it is told: %+v", want, st)
		}
	}
	soon(t, "the node that has said so is gone", func() bool { return of(gone.Node).State == "gone" })
	if st := of(alive.Node).State; st != "up" && st != "overdue" { // where this takes half a minute
		t.Errorf("the other one is %s", st)
	}
}

// parseRecord returns what a text in JSON says.
func parseRecord[T any](t *testing.T, text string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// What is written now is what the version before wrote: a node of that reads it.
func TestRecordsAreWrittenAsBefore(t *testing.T) {
	if program := os.Getenv("UPDATE_RECORDS"); program != "" {
		writeRecords(t, program).keep(beforeFolder)
	}
	now := writeRecords(t, os.Args[0])
	then := &recordHistory{t: t, seen: map[string][]string{}}
	for name, text := range readRecords(t, beforeFolder) {
		then.seen[name] = []string{text}
	}
	was, is := then.shape(), now.shape()
	if len(was) < 30 {
		t.Fatalf("of the records of the version before so much is known: %v", was)
	}
	for field, kind := range was {
		switch got, there := is[field]; {
		case !there && runtime.GOOS != "linux" && strings.Contains(field, "/process/"): // other systems do not tell
		case !there:
			t.Errorf("%s is not written any more, which was %s: a node of the version before misses it", field, kind)
		case got != kind:
			t.Errorf("%s is %s, and was %s: a node of the version before cannot read the record", field, got, kind)
		}
	}
	for field, kind := range is {
		if _, there := was[field]; !there && addedFields[field] == "" {
			t.Errorf("%s (%s) is new: a node of the version before passes it over where it reads the record, and drops it where it writes the record"+
				" again, as it does with a mark that settles, is over or was lost, and with the last report of a node that is gone (say in addedFields what comes of that)", field, kind)
		}
	}
	for name := range then.seen {
		if _, there := now.seen[name]; !there && strings.HasPrefix(name, "marks/") {
			t.Errorf("no mark is written as %s, where the version before looks for it", name)
		}
	}
	values := now.values()
	for _, value := range then.values() {
		if !slices.Contains(values, value) {
			t.Errorf("what the version before wrote is not written any more:\n\t%s\nbut:\n\t%s", value, strings.Join(values, "\n\t"))
		}
	}
}

// addedFields are fields that the version before did not have, and what comes of it that its nodes pass them over, and drop them.
var addedFields = map[string]string{}

// anyName is what is made up at random: the name of a node, and the id of a mark.
var anyName = regexp.MustCompile(`\b[0-9a-f]{16}\b`)

// shape returns what kind of value every field of the records has, by the record's folder and the way to it.
func (h *recordHistory) shape() map[string]string {
	shape := map[string]string{}
	for name, texts := range h.seen {
		folder := regexp.MustCompile(`[0-9a-f]{16,}\.json$`).ReplaceAllString(name, "*.json")
		for _, text := range texts {
			var record any
			if err := json.Unmarshal([]byte(text), &record); err != nil {
				record = text // the key, which is no JSON
			}
			addRecordShape(shape, folder, record)
		}
	}
	return shape
}

func addRecordShape(shape map[string]string, field string, value any) {
	var kind string
	switch value := value.(type) {
	case map[string]any:
		kind = "an object"
		for name, inner := range value {
			if strings.HasSuffix(field, "/heard") || strings.HasSuffix(field, "/upstreams") {
				name = "*"
			}
			addRecordShape(shape, field+"/"+name, inner)
		}
	case []any:
		kind = "a list"
		for _, inner := range value {
			addRecordShape(shape, field+"/*", inner)
		}
	case string:
		raw, notRaw := base64.StdEncoding.DecodeString(value)
		_, noTime := time.Parse(time.RFC3339Nano, value)
		switch {
		case noTime == nil:
			kind = "a time"
		case notRaw == nil && len(raw) == 32:
			kind = "32 bytes in base64"
		default:
			kind = "a string"
		}
	case float64:
		kind = "a number"
	case bool:
		kind = "a boolean"
	default:
		kind = fmt.Sprintf("%T", value)
	}
	if before, there := shape[field]; there && before != kind {
		kind = before + ", or " + kind
	}
	shape[field] = kind
}

// values returns what the records say that is the same whoever writes them, and when.
func (h *recordHistory) values() (values []string) {
	host, err := os.Hostname()
	if err != nil {
		h.t.Fatal(err)
	}
	pair := regexp.MustCompile("192.0.2.2[12]") // which of them gives way, chance decides
	for _, texts := range h.seen {
		for _, text := range texts {
			var record map[string]any
			if json.Unmarshal([]byte(text), &record) != nil {
				continue
			}
			for field := range record {
				switch field {
				case "id", "upstream", "state", "by", "reason", "left", "span", "unsettled", "settles":
				default:
					delete(record, field)
				}
			}
			said, err := json.Marshal(record)
			if err != nil {
				h.t.Fatal(err)
			}
			value := strings.ReplaceAll(string(said), " on "+host+`"`, ` on dashboard-1"`)
			values = append(values, pair.ReplaceAllString(anyName.ReplaceAllString(value, "*"), "192.0.2.2?"))
		}
	}
	slices.Sort(values)
	return slices.Compact(values)
}
