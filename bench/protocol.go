// This file holds as much of Bokeh's protocol as a visit needs: page, token and messages.

package main

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// pageHTML is what of a page matters here.
const pageHTML = `<!DOCTYPE html>
<html lang="en">
  <body>
    <script type="text/javascript">
      const docs_json = '{}';
      const render_items = [{"token":"%s","roots":{},"root_ids":[]}];
      root.Bokeh.embed.embed_items(docs_json, render_items);
    </script>
  </body>
</html>
`

var (
	tokenInPage = regexp.MustCompile(`"token":"([^"]+)"`)
	errNoToken  = errors.New("no token")
	base64url   = base64.RawURLEncoding
)

// sessionID returns the id that a page request brings, or a new one.
func sessionID(r *http.Request) string {
	if id := r.Header.Get("Bokeh-Session-Id"); id != "" {
		return id
	}
	return rand.Text()
}

// newToken makes a token as Bokeh does: the id in clear, the headers and cookies of the page request zipped.
func newToken(id string, r *http.Request) string {
	headers, cookies := map[string]string{}, map[string]string{}
	for name, values := range r.Header {
		headers[name] = strings.Join(values, ",")
	}
	delete(headers, "Cookie")
	for _, c := range r.Cookies() {
		cookies[c.Name] = c.Value
	}
	return packToken(id, map[string]any{"headers": headers, "cookies": cookies, "arguments": r.URL.Query()})
}

// madeUpToken makes a token as no server has made it: of a session that nobody has, whose page seems to have been asked for with a
// stamp. The id of a page that this policy let in is one.
func madeUpToken(stamp string) string {
	return packToken(rand.Text(), map[string]any{"headers": map[string]string{"Caddy-Bokeh-Stamp": stamp}})
}

func packToken(id string, contents map[string]any) string {
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	_ = json.NewEncoder(z).Encode(contents)
	z.Close()
	token, _ := json.Marshal(map[string]any{
		"session_id":     id,
		"session_expiry": time.Now().Add(5 * time.Minute).Unix(),
		"__bk__zlib_":    base64url.EncodeToString(packed.Bytes()),
	})
	return base64url.EncodeToString(token)
}

// idOfToken returns the id in the token of a websocket's request.
func idOfToken(r *http.Request) (string, error) {
	_, token, _ := strings.Cut(r.Header.Get("Sec-Websocket-Protocol"), ",")
	return idInToken(strings.TrimSpace(token))
}

func idInToken(token string) (string, error) {
	text, err := base64url.DecodeString(token)
	if err != nil {
		return "", err
	}
	var t struct {
		ID string `json:"session_id"`
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return "", err
	}
	if t.ID == "" {
		return "", errNoToken
	}
	return t.ID, nil
}

// header is the first frame of a message; metadata, the content and buffers follow it.
type header struct {
	ID      string `json:"msgid"`
	Type    string `json:"msgtype"`
	To      string `json:"reqid,omitempty"`
	Buffers int    `json:"num_buffers,omitempty"`
}

// socket sends and receives Bokeh's messages.
type socket struct{ *websocket.Conn }

func (s socket) send(ctx context.Context, h header, content string) error {
	head, err := json.Marshal(h)
	if err != nil {
		return err
	}
	for _, frame := range []string{string(head), "{}", content} {
		if err := s.Write(ctx, websocket.MessageText, []byte(frame)); err != nil {
			return err
		}
	}
	return nil
}

func (s socket) receive(ctx context.Context) (h header, content []byte, err error) {
	frame := func() (b []byte) {
		if err == nil {
			_, b, err = s.Read(ctx)
		}
		return b
	}
	if head := frame(); err == nil {
		err = json.Unmarshal(head, &h)
	}
	frame() // metadata
	content = frame()
	for range 2 * h.Buffers { // each has a header
		frame()
	}
	return h, content, err
}
