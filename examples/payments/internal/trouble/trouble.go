// Package trouble is what happens to the payments API: one charge sent many times
// at once, then many charges many times each while database connections are killed
// and replies to COMMIT are lost, and at the end an audit of the tables.
//
// It knows the API from outside: by its URL, by the tables accounts and ledger,
// and by the connections of its pool.
package trouble

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// closeLimit bounds what is closed after the trouble.
const closeLimit = 30 * time.Second

// Options says how much trouble is made.
type Options struct {
	// Accounts are the accounts that charges go between.
	Accounts []string
	// Charges is how many distinct charges are sent, AtOnce how many times each
	// at once, and Again how many more rounds send all of them.
	Charges, AtOnce, Again int
	// Burst is how many times one charge is sent at once before the others.
	Burst int
	// KillEvery and CutEvery are the pauses between two connections that are
	// killed, and cut as the reply to a COMMIT passes. 0 is never.
	KillEvery, CutEvery time.Duration
	// Timeout is how long clients of the burst, and of the rest, go on before
	// they give up.
	Timeout time.Duration
}

// API is the payments API as trouble finds it.
type API struct {
	URL string
	// Pool is the API's pool of connections.
	Pool *pgxpool.Pool
}

// connect returns a connection to the API's database that no trouble touches.
func (a *API) connect(ctx context.Context) (*pgx.Conn, error) {
	config := a.Pool.Config().ConnConfig
	config.RuntimeParams["application_name"] = a.name() + "-observer"
	config.AfterNetConnect = nil
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to database %s: %w", config.Database, err)
	}
	return conn, nil
}

// name tells the API's connections from all others.
func (a *API) name() string { return a.Pool.Config().ConnConfig.RuntimeParams["application_name"] }

// Trouble is one run of it.
type Trouble struct {
	options Options
	cutter  *cutter
	lending *lending
	burst   *burst
	load    *load
}

// New returns trouble that has not begun.
func New(options *Options) *Trouble {
	t := &Trouble{options: *options, cutter: &cutter{}, lending: &lending{lent: map[*pgx.Conn]bool{}}}
	t.burst = newBurst(options.Burst, options.Accounts, t.lending)
	t.load = newLoad(&t.options, t.cutter)
	return t
}

// Attach puts a proxy into the connections of a pool that will have this
// configuration, and counts those in use.
func (t *Trouble) Attach(config *pgxpool.Config) {
	config.ConnConfig.AfterNetConnect = t.cutter.wrap
	config.ConnConfig.Tracer = t.lending
}

// Watch returns the handler of charges with its calls counted.
func (t *Trouble) Watch(charges http.Handler) http.Handler { return t.burst.watch(charges) }

// Work takes the time that a charge takes between reading and writing.
func (t *Trouble) Work(ctx context.Context) { t.burst.work(ctx) }

// Run makes the trouble, and returns when every charge is acknowledged or time
// is up.
func (t *Trouble) Run(ctx context.Context, api *API, stderr io.Writer) error {
	if err := t.burst.run(ctx, api.URL, t.options.Accounts[0], t.options.Timeout, stderr); err != nil {
		return err
	}
	return t.load.run(ctx, api, stderr)
}
