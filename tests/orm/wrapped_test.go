package orm_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"testing"

	"github.com/XSAM/otelsql"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	_ "github.com/lib/pq"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/samecommit/samecommit/idempotency/sqlstore"
)

func TestOtelsql(t *testing.T) {
	t.Parallel()
	for entry, newCall := range entries {
		t.Run(entry, func(t *testing.T) {
			t.Parallel()
			spans := tracetest.NewSpanRecorder()
			provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
			b := newBench(t, func(dsn string) (*sql.DB, error) {
				return otelsql.Open("pgx", dsn, otelsql.WithTracerProvider(provider))
			})
			b.once(newCall(b, openSQL(b)))
			seen := 0
			for _, span := range spans.Ended() {
				for _, attr := range span.Attributes() {
					if attr.Value.Type() == attribute.STRING && attr.Value.AsString() == insertCharge {
						seen++
					}
				}
			}
			if seen != 4 { // two of them in the function that ignores an error
				t.Errorf("%d spans of the function's statements, want 4", seen)
			}
		})
	}
}

func TestAnotherDriver(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]func(dsn string) (*sql.DB, error){
		"lib/pq":              func(dsn string) (*sql.DB, error) { return sql.Open("postgres", dsn) },
		"wrapper without Raw": openHidden,
	} {
		for entry, newCall := range entries {
			t.Run(name+"/"+entry, func(t *testing.T) {
				t.Parallel()
				b := newBench(t, open)
				_, err := newCall(b, openSQL(b))(t.Context(), func(context.Context, charge) error {
					t.Error("the function runs")
					return nil
				})
				if !errors.Is(err, sqlstore.ErrDriver) {
					t.Errorf("%v, want ErrDriver", err)
				}
				b.want(0, 0)
			})
		}
	}
}

// openHidden opens connections of pgx's that do not show it.
func openHidden(dsn string) (*sql.DB, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(hidingConnector{stdlib.GetConnector(*config)}), nil
}

type hidingConnector struct{ driver.Connector }

func (c hidingConnector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	return struct{ driver.Conn }{conn}, err
}
