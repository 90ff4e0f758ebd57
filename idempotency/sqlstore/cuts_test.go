package sqlstore_test

import (
	"context"
	"database/sql"
	"fmt"
	"testing"

	"github.com/samecommit/samecommit/internal/pgcut"
	"github.com/samecommit/samecommit/internal/pgtest"
)

// Wherever the wire is cut, calling again with the same key leaves one effect and one
// answer.
func TestCuts(t *testing.T) {
	t.Parallel()
	nothing := func(context.Context, *sql.Tx) error { return nil }
	for name, call := range map[string]func(b *sqlBench, ctx context.Context, key string) error{
		"Do":   func(b *sqlBench, ctx context.Context, key string) error { return b.do(ctx, key, nothing) },
		"DoTx": func(b *sqlBench, ctx context.Context, key string) error { return b.doTx(ctx, key, nothing) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, cutter := cutBench(t, pgtest.DB(t))
			if err := call(b, t.Context(), "warm up"); err != nil {
				t.Fatal(err)
			}
			cutter.Arm(nil)
			if err := call(b, t.Context(), "counted"); err != nil {
				t.Fatal(err)
			}
			var points []pgcut.Point
			messages := cutter.Messages()
			for i, m := range messages {
				for _, after := range []bool{false, true} {
					if after && i+1 < len(messages) && messages[i+1].From == m.From {
						continue // the same as before the next one
					}
					for _, mode := range []pgcut.Mode{pgcut.Reset, pgcut.Close} {
						points = append(points, pgcut.Point{From: m.From, Number: m.Number, After: after, Mode: mode})
					}
				}
			}
			if len(points) < 80 {
				t.Errorf("%d points only", len(points))
			}
			step := 1
			if testing.Short() {
				step = 9
			}
			for i := 0; i < len(points); i += step {
				b.cut(t, cutter, points[i], func(key string) error { return call(b, t.Context(), key) })
			}
		})
	}
}

// cut is one trial. Its key has its name from the point, which says where to look.
func (b *sqlBench) cut(t testing.TB, cutter *pgcut.Cutter, point pgcut.Point, call func(key string) error) {
	t.Helper()
	key := fmt.Sprint(point)
	if err := call(key + " warm up"); err != nil { // on a connection that has prepared its statements
		t.Errorf("%v: before it: %v", point, err)
	}
	cut := cutter.Arm(&point)
	first := call(key)
	select {
	case <-cut:
	default:
		t.Errorf("%v: nothing was cut", point)
	}
	cutter.Arm(nil)
	err := call(key)
	if err != nil && first == nil {
		err = call(key) // database/sql begins the caller's transaction on a connection that is dead
	}
	if err != nil {
		t.Errorf("%v: first %v, then %v", point, first, err)
	}
	b.want(t, key, 1, true)
}
