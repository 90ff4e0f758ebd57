//go:build unix

package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/pgxstore"
	"github.com/samecommit/samecommit/txhelper"
)

// clientVariable makes this test binary a client process with that script.
const clientVariable = "SAMECOMMIT_CHAOS_CLIENT"

// Where a client process can be killed.
const (
	hookBefore    = "before"    // nothing was sent
	hookClaimed   = "claimed"   // the key is held
	hookEffect    = "effect"    // the effect is written
	hookCompleted = "completed" // the answer is written, by Complete
	hookCommit    = "commit"    // COMMIT is about to be sent
	hookSent      = "sent"      // COMMIT was sent
	hookAnswered  = "answered"  // its reply has arrived
	hookReturned  = "returned"  // the call has returned
	hookStep      = "step"      // a step of leased work is recorded
)

// verbExternal is of client processes alone.
const verbExternal = "DoExternal"

// script is what a client process does: calls one after another, until a signal
// ends it, or stops it, at a hook of the last one.
type script struct {
	URL, Verb, Key, Hook string
	Level                pgx.TxIsoLevel
	Mode                 pgx.QueryExecMode
	Before               int // calls before the last one
	IdleTimeout, Lease   time.Duration
	Signal               syscall.Signal
}

// key is that of the given call.
func (s *script) key(n int) idempotency.Key {
	return idempotency.Key{Scope: "client", ID: fmt.Sprintf("%s %d", s.Key, n)}
}

// told is a line that a client process writes for each call: what it was told.
type told struct {
	Executed bool
	ID       string
	Unknown  bool
	Err      string
	// Late is what a holder was told by each verb once it went on, in the order of
	// lateVerbs.
	Late []string `json:",omitempty"`
}

// lateVerbs are what a holder tries that has stood still.
var lateVerbs = []string{"Step", "Extend", "AddStep", "Suspend", "Complete", "RunHeld"}

// client is a client process.
type client struct {
	script
	store   *pgxstore.Store
	late    []string
	pool    *pgxpool.Pool
	client  *idempotency.Client[pgx.Tx]
	options *txhelper.Options
	last    atomic.Bool
}

// stopping is the line before a client process stops.
const stopping = "stopping"

// hook ends or stops the process, if this is where.
func (c *client) hook(name string) {
	if !c.last.Load() || name != c.Hook {
		return
	}
	if c.Signal == syscall.SIGSTOP {
		c.last.Store(false)
		fmt.Println(stopping)
	}
	_ = syscall.Kill(os.Getpid(), c.Signal)
	// A signal arrives a little later. After a stop go on when told to.
	if c.Signal == syscall.SIGKILL {
		select {}
	}
	_, _ = fmt.Scanln()
}

// be makes this process what the variable asks for, if it was started as that.
func be(variable string, run func(text string) error) {
	text := os.Getenv(variable)
	if text == "" {
		return
	}
	if err := run(text); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", variable, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func runClient(text string) error {
	c := &client{}
	if err := json.Unmarshal([]byte(text), &c.script); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(c.URL)
	if err != nil {
		return err
	}
	config.MaxConns = 2
	config.ConnConfig.DefaultQueryExecMode = c.Mode
	config.ConnConfig.RuntimeParams["application_name"] = c.Key
	if c.Verb != verbDo { // Do sets it itself
		config.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = fmt.Sprint(c.IdleTimeout.Milliseconds())
	}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		return &hookedConn{conn, c}, err
	}
	ctx := context.Background()
	if c.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return err
	}
	defer c.pool.Close()
	c.options = &txhelper.Options{TxOptions: pgx.TxOptions{IsoLevel: c.Level}}
	if c.store, err = pgxstore.New(c.pool, &pgxstore.Config{TxOptions: c.options.TxOptions, IdleTimeout: c.IdleTimeout}); err != nil {
		return err
	}
	if c.client, err = idempotency.NewClient(c.store, nil); err != nil {
		return err
	}
	for n := range c.Before + 1 {
		c.last.Store(n == c.Before)
		line, err := json.Marshal(c.call(ctx, n))
		if err != nil {
			return err
		}
		fmt.Println(string(line))
		c.hook(hookReturned)
	}
	return nil
}

func (c *client) call(ctx context.Context, n int) told {
	key := c.key(n)
	params := idempotency.Params{Key: key, Fingerprint: idempotency.FingerprintOf("a")}
	operation := func(ctx context.Context, tx pgx.Tx) (string, error) {
		c.hook(hookClaimed)
		id := c.Key + " client"
		err := insert(ctx, tx, key, id)
		c.hook(hookEffect)
		return id, err
	}
	c.hook(hookBefore)
	var result idempotency.Result[string]
	var err error
	switch c.Verb {
	case verbDo:
		result, err = idempotency.Do(ctx, c.client, params, operation)
	case verbExternal:
		params.Lease = c.Lease
		result, err = idempotency.DoExternal(ctx, c.client, params, c.charge, func(ctx context.Context, tx pgx.Tx, charge string) (string, error) {
			_, err := operation(ctx, tx)
			return charge, err
		})
	case verbDoTx:
		result, err = txhelper.RunValue(ctx, c.pool, c.options, func(ctx context.Context, tx pgx.Tx) (idempotency.Result[string], error) {
			result, err := idempotency.DoTx(ctx, c.client, tx, params, operation)
			if err != nil {
				return idempotency.Result[string]{}, err
			}
			return result.Answer()
		})
	case verbBegin:
		err = txhelper.Run(ctx, c.pool, c.options, func(ctx context.Context, tx pgx.Tx) error {
			verbs := c.client.WithTx(tx)
			outcome, err := verbs.Begin(ctx, params)
			if err != nil {
				return err
			}
			if outcome.State != idempotency.New {
				return fmt.Errorf("the key is %v", outcome.State)
			}
			if result.Value, err = operation(ctx, tx); err != nil {
				return err
			}
			_, err = verbs.Complete(ctx, outcome.Claim, response(result.Value))
			c.hook(hookCompleted)
			return err
		})
	}
	if err != nil {
		var ambiguous *txhelper.AmbiguousCommitError
		return told{Unknown: errors.As(err, &ambiguous) || errors.Is(err, idempotency.ErrOutcomeUnknown), Err: err.Error(), Late: c.late}
	}
	return told{Executed: !result.Replayed, ID: result.Value}
}

// charge is a step elsewhere. After the hook it tries what a holder could, without
// asking its context.
func (c *client) charge(ctx context.Context, lease *idempotency.Lease) (string, error) {
	charge, err := step(ctx, lease, "charge", c.Key+" client's charge")
	if err != nil {
		return "", err
	}
	record, err := c.store.Get(ctx, lease.Key())
	if err != nil {
		return "", err
	}
	c.hook(hookStep)
	ctx = context.WithoutCancel(ctx)
	claim := &idempotency.Claim{Key: lease.Key(), ID: record.ClaimID, TTL: time.Hour, LockedUntil: record.LockedUntil}
	refused := func(err error) {
		word := "not refused"
		for _, known := range []error{idempotency.ErrLeaseEnded, idempotency.ErrClaimLost} {
			if errors.Is(err, known) {
				word = known.Error()
			}
		}
		c.late = append(c.late, word)
	}
	_, err = step(ctx, lease, "late", "late")
	refused(err)
	_, err = c.store.Extend(ctx, claim, time.Hour)
	refused(err)
	refused(c.store.AddStep(ctx, claim, &idempotency.StepRecord{Name: "late", Arguments: idempotency.NoFingerprint, Response: response("late")}))
	refused(c.store.Suspend(ctx, claim))
	_, err = c.store.Complete(ctx, claim, response("late"))
	refused(err)
	_, err = c.store.RunHeld(ctx, claim, func(ctx context.Context, tx pgx.Tx) (idempotency.Answer, error) {
		return idempotency.Answer{Response: response("late")}, insert(ctx, tx, claim.Key, "late")
	})
	refused(err)
	return charge, nil
}

// step records value as what was done elsewhere.
func step(ctx context.Context, lease *idempotency.Lease, name, value string) (string, error) {
	return idempotency.Step(ctx, lease, name, idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return value, nil })
}

// hookedConn has the hooks around COMMIT. It finds the statement by its text,
// which is sent each time in the modes that keep no statements.
type hookedConn struct {
	net.Conn
	client *client
}

func (h *hookedConn) Write(data []byte) (int, error) {
	if !bytes.Contains(data, []byte("commit\x00")) && !bytes.Contains(data, []byte("commit;\x00")) {
		return h.Conn.Write(data)
	}
	h.client.hook(hookCommit)
	n, err := h.Conn.Write(data)
	h.client.hook(hookSent)
	return n, err
}

func (h *hookedConn) Read(data []byte) (int, error) {
	n, err := h.Conn.Read(data)
	if bytes.Contains(data[:n], []byte("COMMIT\x00")) {
		h.client.hook(hookAnswered)
	}
	return n, err
}
