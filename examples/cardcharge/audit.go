package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/jackc/pgx/v5/pgxpool"
)

// trial is one order and what went wrong with it: a kill, or the provider.
type trial struct {
	Order string `json:"order"`
	Kill  point  `json:"kill,omitempty"`
	Fault fault  `json:"fault,omitempty"`

	Processes int  `json:"processes"`
	Killed    bool `json:"killed"`
	Charges   int  `json:"charges"`
	Bookings  int  `json:"bookings"`
	// Told is what the last process was told.
	Told  string `json:"told"`
	Wrong bool   `json:"wrong"`
}

func trials() (all []*trial) {
	for _, kill := range []point{started, claimed, charged, recorded, booked, committed} {
		all = append(all, &trial{Kill: kill})
	}
	for _, fault := range []fault{refuses, hangsUp, declines} {
		all = append(all, &trial{Fault: fault})
	}
	for i, t := range all {
		t.Order = fmt.Sprintf("order-%d", 1001+i)
	}
	return all
}

// audit compares the provider's books with ours and with what was said.
func (t *trial) audit(ctx context.Context, pool *pgxpool.Pool, provider *provider, said *answer) error {
	var booked string
	if err := pool.QueryRow(ctx, `SELECT count(*), coalesce(min(charge_id), '') FROM bookings WHERE order_id = $1`, t.Order).Scan(&t.Bookings, &booked); err != nil {
		return fmt.Errorf("read the bookings: %w", err)
	}
	t.Charges = provider.charges(t.Order)
	want, told := 1, said.Booking == Booking{Order: t.Order, Charge: booked} && said.Err == ""
	t.Told = said.Booking.Charge
	if t.Fault == declines {
		want, told = 0, said.Declined
	}
	if said.Err != "" {
		t.Told = said.Err
	}
	t.Wrong = t.Charges != want || t.Bookings != want || !told || t.Killed != (t.Kill != "")
	return nil
}

func printTrials(out io.Writer, all []*trial, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(all)
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "killed, or\tprocesses\tcharges\tbookings\ttold at last\t")
	for _, t := range all {
		mark := ""
		if t.Wrong {
			mark = "WRONG"
		}
		_, _ = fmt.Fprintf(table, "%s%s\t%d\t%d\t%d\t%s\t%s\n", t.Kill, t.Fault, t.Processes, t.Charges, t.Bookings, t.Told, mark)
	}
	return table.Flush()
}
