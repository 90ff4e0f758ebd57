//go:build unix

package chaos_test

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"text/tabwriter"
)

// table aligns rows of cells in columns.
func table(rows [][]any) string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		line := ""
		for _, cell := range row {
			line += fmt.Sprint(cell) + "\t"
		}
		_, _ = io.WriteString(w, line+"\n") // into memory
	}
	_ = w.Flush()
	return text.String()
}

// violations is what a report says of the invariants once they have been checked.
func violations(t *testing.T) string {
	t.Helper()
	if t.Failed() {
		return "invariants were violated: see the errors"
	}
	return "0 invariant violations"
}
