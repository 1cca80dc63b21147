// This file holds how text with what others wrote in it is printed.

package printable

import (
	"fmt"
	"io"
)

// Fprintf is fmt.Fprintf, but strings, errors and what has a String method are made printable before they are filled in.
func Fprintf(w io.Writer, format string, args ...any) {
	harmless := make([]any, len(args))
	for i, arg := range args {
		switch x := arg.(type) {
		case string:
			harmless[i] = Text(x)
		case error:
			harmless[i] = Text(x.Error())
		case fmt.Stringer:
			harmless[i] = Text(x.String())
		default:
			harmless[i] = arg
		}
	}
	fmt.Fprintf(w, format, harmless...)
}
