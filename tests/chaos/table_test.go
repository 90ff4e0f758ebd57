package chaos_test

import (
	"fmt"
	"io"
	"strings"
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
