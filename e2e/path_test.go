// This file tests apps that are served under a path.

package e2e

import "testing"

// The servers know the path, or Caddy takes it off.
func TestAppUnderAPath(t *testing.T) {
	t.Parallel()
	panel := panelServe("", "panel_counter").plan
	panel.page = "/dash/panel_counter"
	for name, p := range map[string]plan{
		"Bokeh": {page: "/dash/counter"},
		"Panel": panel,
	} {
		p.size = 2
		knows, stripped := p, p
		knows.serve, knows.ready = append([]string{"--prefix", "/dash"}, p.serve...), "/dash/static/js/bokeh.min.js"
		stripped.site = "\turi strip_prefix /dash"
		for how, p := range map[string]plan{"prefix": knows, "handle_path": stripped} {
			t.Run(name+", "+how, func(t *testing.T) {
				t.Parallel()
				f := start(t, p)
				b := newTab(t)
				for range 6 {
					f.visitIn(b)
					b.clicks(2)
					b.mark()
					f.front.cut()
					b.reconnected()
					b.click(3)
				}
				f.wantRuns(6)
			})
		}
	}
}
