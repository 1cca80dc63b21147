// This file holds the handler that keeps files whose address names their content.

package caddybokeh

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/encode"
	"github.com/dustin/go-humanize"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/contentcache"
	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

func init() {
	caddy.RegisterModule(new(Files))
}

// How much memory the files may take.
const (
	defaultFilesSize = 64 << 20
	minFilesSize     = 1 << 20
)

// fileCaching is what browsers and proxies are told of a file that is what its address says. Not "public": a site may ask
// who its visitors are.
const fileCaching = "max-age=31536000, immutable"

// Files is a handler that keeps the files of Bokeh servers whose address names their content.
//
// Bokeh and Tornado write `?v=` and the SHA-512 of a file behind its address. This handler asks the next handler,
// which is a `reverse_proxy`, once for such a file, also where many visitors ask at the same time. It keeps what has
// that hash, and answers by itself from then on: compressed with zstd or gzip, with ranges and
// conditions, and with a `Cache-Control` that lets browsers keep the file for a year. An answer that has another hash
// is never kept. Then each other upstream of an `lb_policy bokeh` is asked for the file as well, as while servers with two versions
// of Bokeh run. If none has it, the first answer is passed on, and browsers are told not to store it.
//
// It looks at a `GET` or `HEAD` with no body whose query is `v=` and 128 hexadecimal digits in lower case and nothing else, and
// whose path has a segment `static` and the ending of a script, style sheet, source map, JSON or WebAssembly file, font or image.
// Everything else is passed on.
//
// Files are found by the host and path at which this site's own servers have answered with them, so no site serves another one's. Where the
// upstreams of an `lb_policy bokeh` depend on the request nothing is kept; before another policy's do not use it then, unless they depend on host and path alone.
// Where several sites have the same file it is in memory once. A file that takes more than an eighth of the size is passed on and not kept.
// What is kept outlives no config: after a reload each file is asked for once more.
//
// What became of a request is in the `Cache-Status` header of the answer (RFC 9211), as that of the cache `bokeh-files`.
type Files struct {
	// The most memory that files may take, in bytes, with their compressed forms. All sites of this process share it:
	// the largest value of the loaded config counts, with the default for those that have none. At least 1 MiB. Default: 64 MiB.
	Size int64 `json:"size,omitempty"`

	logger *zap.Logger
	site   *contentcache.Site
	hunts  *hunts
	wrong  pacer
}

// files is the one cache of this process, because memory is.
var files contentcache.Cache

// CaddyModule returns the Caddy module information.
func (*Files) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.bokeh_files",
		New: func() caddy.Module { return new(Files) },
	}
}

// Provision sets up f.
func (f *Files) Provision(ctx caddy.Context) error {
	if f.Size != 0 {
		if err := checkFilesSize(f.Size); err != nil { // before the cache takes it for its limit
			return err
		}
	}
	f.logger = printable.Log(ctx.Logger())
	f.hunts = newHunts()
	if err := registerOnce(ctx.GetMetricsRegistry(), fileMetrics{}); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	f.site = files.Open(cmp.Or(f.Size, defaultFilesSize))
	return nil
}

// Cleanup lets go of the files.
func (f *Files) Cleanup() error {
	if f.site != nil {
		f.site.Close()
	}
	return nil
}

func checkFilesSize(n int64) error {
	if n < minFilesSize {
		return fmt.Errorf("invalid size %d of bokeh_files: it is at least 1MiB, in JSON a number of bytes", n)
	}
	return nil
}

// UnmarshalCaddyfile sets up the handler from Caddyfile tokens. Syntax:
//
//	bokeh_files [<matcher>] [<size>]
func (f *Files) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume directive name
	if d.NextArg() {
		if err := f.unmarshalSize(d); err != nil {
			return err
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(0) {
		return d.Errf("bokeh_files takes no block: write its size on the line, as in bokeh_files 128MiB")
	}
	return nil
}

func (f *Files) unmarshalSize(d *caddyfile.Dispenser) error {
	n, err := humanize.ParseBytes(d.Val())
	if err != nil || n > 1<<50 {
		return d.Errf("invalid size %q of the files: write it with its unit, as in 128MiB", d.Val())
	}
	f.Size = int64(n)
	if err := checkFilesSize(f.Size); err != nil {
		return d.Errf("invalid size %q of the files: it is at least 1MiB", d.Val())
	}
	return nil
}

// fileTypes are the media types of what is kept, by its ending. The server's own word counts for nothing: it comes from
// the tables of the machine it runs on.
var fileTypes = map[string]string{
	".js":    "text/javascript; charset=utf-8",
	".mjs":   "text/javascript; charset=utf-8",
	".css":   "text/css; charset=utf-8",
	".map":   "application/json",
	".json":  "application/json",
	".wasm":  "application/wasm",
	".svg":   "image/svg+xml",
	".ico":   "image/vnd.microsoft.icon",
	".ttf":   "font/ttf",
	".otf":   "font/otf",
	".woff":  "font/woff",
	".woff2": "font/woff2",
	".png":   "image/png",
	".jpg":   "image/jpeg",
	".jpeg":  "image/jpeg",
	".gif":   "image/gif",
	".webp":  "image/webp",
	".avif":  "image/avif",
}

// isPacked are the endings of files that are compressed already.
var isPacked = map[string]bool{
	".woff": true, ".woff2": true, ".png": true, ".jpg": true, ".jpeg": true, ".gif": true, ".webp": true, ".avif": true,
}

// fileAsk is a request for a file whose address names its content.
type fileAsk struct {
	url    string // host and path
	sum    contentcache.Sum
	v      string // the sum as the address has it
	ending string
}

// readFileAsk returns what r asks for, if that is such a file.
func readFileAsk(r *http.Request) (a fileAsk, ok bool) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return fileAsk{}, false
	}
	v, named := strings.CutPrefix(r.URL.RawQuery, "v=")
	if !named || len(v) != hex.EncodedLen(len(a.sum)) || v != strings.ToLower(v) || bokeh.BringsBody(r) {
		return fileAsk{}, false
	}
	if _, err := hex.Decode(a.sum[:], []byte(v)); err != nil {
		return fileAsk{}, false
	}
	a.ending = path.Ext(r.URL.Path)
	if fileTypes[a.ending] == "" || !strings.Contains(r.URL.Path, "/static/") || r.Header.Get("Upgrade") != "" {
		return fileAsk{}, false
	}
	a.url, a.v = r.Host+"\x00"+r.URL.EscapedPath(), v
	return a, true
}

// ServeHTTP answers r if it asks for a file that is kept, or that next has and that is kept from now on.
func (f *Files) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	ask, ok := readFileAsk(r)
	if !ok {
		return next.ServeHTTP(w, r)
	}
	if file := f.site.Get(ask.url, ask.sum); file != nil {
		return f.serve(w, r, ask, file, filesHit)
	}
	file, turn := f.site.Join(r.Context(), ask.url, ask.sum)
	result := filesShared
	if file == nil {
		var err error
		if file, result, err = f.fetch(w, r, next, ask, turn); file == nil {
			return err
		}
	}
	return f.serve(w, r, ask, file, result)
}

// fetch asks next for the file, and keeps it if it is the right one. Where it returns none, r is answered. The turn ends before the visitor
// is served, who may be slow.
func (f *Files) fetch(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, ask fileAsk, turn *contentcache.Turn) (file *contentcache.File, result string, err error) {
	defer turn.End()
	asked := new(askedUpstreams)
	first := newFileRecorder(w, ask, turn)
	err = first.record(next, fileRequest(r, turn.Context(), asked))
	if first.passing {
		fileResults.Add(filesUnkept)
		return nil, "", passedOn(err)
	}
	if file := turn.File(); file != nil {
		return file, filesShared, nil // another one was faster
	}
	result = filesUnkept
	switch {
	case first.isRight():
		if header, may := first.kept(); may && !asked.vary {
			return turn.Keep(first.body, header), filesMiss, nil
		}
	case first.isWrong():
		if file := f.hunt(r, next, ask, turn, asked); file != nil {
			return file, filesElsewhere, nil
		}
		result = filesWrong
	}
	if r.Context().Err() != nil { // this visitor has gone, and the next one who waits goes on
		first.pass(filesUnkept)
		return nil, "", passedOn(err)
	}
	if result == filesWrong {
		f.warnWrong(r)
	}
	turn.GiveUp()
	fileResults.Add(result)
	if !turn.HandOn() {
		first.drop()
		return nil, "", askAgain(w, r, next, ask, turn, result)
	}
	first.pass(result)
	return nil, "", passedOn(err)
}

// passedOn is how a request ends whose answer was handed on.
func passedOn(err error) error {
	if errors.Is(err, errAborted) {
		panic(http.ErrAbortHandler) // so that the visitor sees that the answer is not whole
	}
	return err
}

// askAgain hands on the next answer as it comes. So much is being handed on to others that nothing more can be held.
func askAgain(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, ask fileAsk, turn *contentcache.Turn, result string) error {
	rec := newFileRecorder(w, ask, turn)
	rec.only = result
	err := rec.record(next, fileRequest(r, r.Context(), nil))
	rec.pass(result) // if it has no header
	return passedOn(err)
}

// fileRequest returns a request for the whole file, which does not depend on what r's browser has or can do, nor on a body, of which nobody
// knows over HTTP/3 whether it ends. Whom it was asked of is written down unless that is nil.
func fileRequest(r *http.Request, ctx context.Context, asked *askedUpstreams) *http.Request {
	if asked != nil {
		asked.left = false
		ctx = context.WithValue(ctx, askedKey{}, asked)
	}
	whole := r.Clone(ctx)
	whole.Method = http.MethodGet
	whole.Body, whole.ContentLength, whole.Trailer = http.NoBody, 0, nil
	for _, name := range []string{"Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since", "If-Unmodified-Since"} {
		whole.Header.Del(name)
	}
	whole.Header.Set("Accept-Encoding", "identity")
	return whole
}

// serve answers with a file that is kept.
func (f *Files) serve(w http.ResponseWriter, r *http.Request, ask fileAsk, file *contentcache.File, result string) error {
	fileResults.Add(result)
	h := w.Header()
	if file.Header["Server"] != nil {
		h.Del("Server") // as the proxy does
	}
	for name, values := range file.Header {
		h[name] = slices.Concat(h[name], values)
	}
	h.Set("Content-Type", fileTypes[ask.ending])
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", fileCaching)
	h.Add("Cache-Status", cacheStatus[result])
	data, etag := file.Bytes(), ask.v
	if !isPacked[ask.ending] {
		h.Add("Vary", "Accept-Encoding")
		if encoding, encoded := encodedFor(r, file); encoded != nil {
			data, etag = encoded, ask.v+"."+encoding
			h.Set("Content-Encoding", encoding)
			if r.Header.Get("If-Match") == "" { // of which may come an answer without content
				h.Set("Content-Length", strconv.Itoa(len(data))) // ServeContent does it only for what is not encoded
			}
		}
	}
	h.Set("Etag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return nil
}

// encodedFor returns the file in an encoding that r's client takes, or nil. Parts are those of the file as it is.
func encodedFor(r *http.Request, file *contentcache.File) (encoding string, data []byte) {
	if r.Header.Get("Range") != "" {
		return "", nil
	}
	for _, encoding := range encode.AcceptedEncodings(r, contentcache.Encodings) {
		if encoding == "identity" {
			break
		}
		if !slices.Contains(contentcache.Encodings, encoding) {
			continue
		}
		if data := file.Encoded(encoding); data != nil {
			return encoding, data
		}
	}
	return "", nil
}

// warnWrong logs that no server has a file that a page asks for.
func (f *Files) warnWrong(r *http.Request) {
	if f.wrong.allows(thisLedger().Now()) {
		f.logger.Warn("no server that was asked has the file which this address names by its SHA-512, so a page may not work"+
			" (if servers with the version that made the page are gone, reload the page; if \"?v=\" of your own files is another hash, serve them under another path than static)",
			zap.String("site", r.Host), zap.String("path", r.URL.Path))
	}
}

// The results of asking for a file, as the metrics have them.
const (
	filesHit       = "hit"       // it was kept
	filesShared    = "shared"    // another request was fetching it
	filesMiss      = "miss"      // it was fetched
	filesElsewhere = "elsewhere" // it was fetched, not from the first server that was asked
	filesWrong     = "wrong"     // no server that was asked has it
	filesUnkept    = "unkept"    // it cannot be kept, or no server answered well
)

// cacheStatus is what the Cache-Status header says of each (RFC 9211).
var cacheStatus = map[string]string{
	filesHit:       "bokeh-files; hit",
	filesShared:    "bokeh-files; fwd=uri-miss; collapsed",
	filesMiss:      "bokeh-files; fwd=uri-miss; stored",
	filesElsewhere: "bokeh-files; fwd=uri-miss; stored; detail=elsewhere",
	filesWrong:     "bokeh-files; fwd=uri-miss; detail=wrong",
	filesUnkept:    "bokeh-files; fwd=uri-miss; detail=unkept",
}

// fileResults counts them. It outlives configs, as counters do.
var fileResults = sessions.NewCounters(slices.Collect(maps.Keys(cacheStatus))...)

// fileMetrics are read when Prometheus asks.
type fileMetrics struct{}

var (
	descFiles = newDesc("files_total", "Requests for files whose address names their content, by what became of them: hit (it was kept), shared (another request was fetching it),"+
		" miss (fetched and kept), elsewhere (fetched and kept, not from the first server that was asked), wrong (no server that was asked has it), unkept (it cannot be kept, or no server answered well).", "result")
	descFileBytes = newDesc("files_bytes", "Memory that the kept files take, with their compressed forms.")
)

// Describe implements prometheus.Collector.
func (fileMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- descFiles
	ch <- descFileBytes
}

// Collect implements prometheus.Collector.
func (fileMetrics) Collect(ch chan<- prometheus.Metric) {
	for result, n := range fileResults {
		ch <- prometheus.MustNewConstMetric(descFiles, prometheus.CounterValue, float64(n.Load()), result)
	}
	ch <- prometheus.MustNewConstMetric(descFileBytes, prometheus.GaugeValue, float64(files.Used()))
}

// Interface guards
var (
	_ caddy.Module                = (*Files)(nil)
	_ caddy.Provisioner           = (*Files)(nil)
	_ caddy.CleanerUpper          = (*Files)(nil)
	_ caddyfile.Unmarshaler       = (*Files)(nil)
	_ caddyhttp.MiddlewareHandler = (*Files)(nil)
)
