package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
)

// report is what the tables say, beside what the clients were told.
type report struct {
	Requested     int   `json:"requested"`
	Effects       int   `json:"effects"`
	DoubleEffects int   `json:"double_effects"`
	LostAcks      int   `json:"lost_acks"`
	Replayed      int64 `json:"replayed"`
	BalanceOK     bool  `json:"balance_ok"`

	// stuck counts charges that nobody acknowledged in time; lastRefusal is
	// what the client of one of them was told.
	stuck       int
	lastRefusal string
	killed      int64
	before      int64
	after       int64
	// wrongAccounts counts accounts whose balance is not what the ledger says.
	wrongAccounts int
}

// entry is a row of the ledger.
type entry struct {
	ID        int64
	ChargeRef string
}

func audit(ctx context.Context, db *database, client *client, counts *counts, before int64) (_ *report, err error) {
	// Not the API's pool, in which dead connections may be left.
	conn, err := db.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()

	rows, err := conn.Query(ctx, "SELECT id, charge_ref FROM ledger")
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	entries, err := pgx.CollectRows(rows, pgx.RowToStructByPos[entry])
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	refs := make(map[int64]string, len(entries))
	effects := make(map[string]int, len(entries))
	for _, e := range entries {
		refs[e.ID] = e.ChargeRef
		effects[e.ChargeRef]++
	}

	r := &report{Requested: len(client.charges), Effects: len(refs), Replayed: counts.replayed.Load(), killed: counts.killed.Load(), before: before}
	for _, n := range effects {
		r.DoubleEffects += n - 1
	}
	for _, charge := range client.charges {
		var told Charge
		switch {
		case charge.answer == nil:
			r.stuck++
			r.lastRefusal = charge.refusal
		case charge.contradicted, json.Unmarshal(charge.answer, &told) != nil, refs[told.ID] != charge.ref:
			r.LostAcks++
		}
	}
	if err := conn.QueryRow(ctx, `SELECT sum(balance)::bigint, count(*) FILTER (WHERE balance <> opened_with
			+ coalesce((SELECT sum(amount) FROM ledger WHERE to_account = accounts.id), 0)
			- coalesce((SELECT sum(amount) FROM ledger WHERE from_account = accounts.id), 0))
		FROM accounts`).Scan(&r.after, &r.wrongAccounts); err != nil {
		return nil, fmt.Errorf("add up the balances: %w", err)
	}
	r.BalanceOK = r.before == r.after && r.wrongAccounts == 0
	return r, nil
}

func (r *report) ok() bool {
	return r.Effects == r.Requested && r.DoubleEffects == 0 && r.LostAcks == 0 && r.stuck == 0 && r.BalanceOK
}

func (r *report) print(opts *options, stdout, stderr io.Writer) (code int, err error) {
	if opts.json {
		err = json.NewEncoder(stdout).Encode(r)
	} else {
		err = r.printTable(stdout)
	}
	if err != nil {
		return exitFailed, fmt.Errorf("print the audit: %w", err)
	}
	code, verdict := exitFailed, ""
	switch {
	case r.ok() && opts.naive:
		code, verdict = exitOK, "Nothing went wrong this time, by luck: try a larger -n or a smaller -kill-every."
	case r.ok():
		code, verdict = exitOK, "Every charge took effect exactly once, and every answer was true."
	case opts.naive:
		verdict = "It went wrong, which is what --naive is for: key, money and answer are three commits,\n" +
			"and connections died between them. Without --naive they are one."
	default:
		verdict = "Something is off: this is a bug in samecommit. Please report it with the lines above."
	}
	if r.stuck > 0 {
		verdict = fmt.Sprintf("%d charges were not acknowledged within %s; the last answer to one of them: %s\n%s", r.stuck, opts.timeout, r.lastRefusal, verdict)
	}
	_, err = fmt.Fprintln(stderr, verdict)
	return code, err
}

func (r *report) printTable(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range []struct {
		name  string
		value int64
	}{
		{"charges requested", int64(r.Requested)},
		{"effects in the ledger", int64(r.Effects)},
		{"double effects", int64(r.DoubleEffects)},
		{"lost acknowledgements", int64(r.LostAcks)},
		{"never acknowledged", int64(r.stuck)},
		{"answers replayed", r.Replayed},
		{"connections killed", r.killed},
		{"sum of balances before", r.before},
		{"sum of balances after", r.after},
		{"balances not as in the ledger", int64(r.wrongAccounts)},
	} {
		// Only the numbers are aligned right: names are padded by hand.
		if _, err := fmt.Fprintf(table, "%-29s\t%d\t\n", row.name, row.value); err != nil {
			return err
		}
	}
	return table.Flush()
}
