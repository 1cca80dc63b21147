// This file holds how the commands write.

package cli

import (
	"fmt"
	"io"

	"github.com/caddy-bokeh/caddy-bokeh/internal/printable"
)

// say is how the commands write: as fmt.Fprintf, but what is filled in is made printable.
func say(w io.Writer, format string, args ...any) {
	harmless := make([]any, len(args))
	for i, arg := range args {
		switch x := arg.(type) {
		case string:
			harmless[i] = printable.Text(x)
		case error:
			harmless[i] = printable.Text(x.Error())
		case fmt.Stringer:
			harmless[i] = printable.Text(x.String())
		default:
			harmless[i] = arg
		}
	}
	fmt.Fprintf(w, format, harmless...)
}
