package trouble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"

	"github.com/jackc/pgx/v5"
)

// Report is what the tables say, beside what the clients were told.
type Report struct {
	Requested     int   `json:"requested"`
	Effects       int   `json:"effects"`
	DoubleEffects int   `json:"double_effects"`
	LostAcks      int   `json:"lost_acks"`
	Replayed      int64 `json:"replayed"`
	BalanceOK     bool  `json:"balance_ok"`
	CommitsCut    int64 `json:"commits_cut"`

	// Of the burst, which is not in the numbers above. Executed is what the
	// ledger says, and unrelated requests are those that were served meanwhile.
	BurstRequested       int    `json:"burst_requested"`
	BurstExecuted        int    `json:"burst_executed"`
	BurstReplayed        int64  `json:"burst_replayed"`
	BurstMostConnections int64  `json:"burst_most_connections"`
	UnrelatedServed      int64  `json:"burst_unrelated_served"`
	UnrelatedIdleP50     micros `json:"burst_unrelated_idle_p50_us"`
	UnrelatedIdleP99     micros `json:"burst_unrelated_idle_p99_us"`
	UnrelatedP50         micros `json:"burst_unrelated_p50_us"`
	UnrelatedP99         micros `json:"burst_unrelated_p99_us"`

	options *Options
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

// Audit reads the tables after Run. Before is the sum of balances from before it,
// in cents.
func (t *Trouble) Audit(ctx context.Context, api *API, before int64) (_ *Report, err error) {
	load, burst := t.load, t.burst
	// Not the API's pool, in which dead connections may be left.
	conn, err := api.connect(ctx)
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

	r := &Report{
		options:   &t.options,
		Requested: len(load.charges), Replayed: load.counts.replayed.Load(),
		CommitsCut: load.counts.cut.Load(), killed: load.counts.killed.Load(), before: before,
	}
	charges := load.charges
	if burst.size > 0 {
		charges = append(charges, burst.charge)
		r.BurstRequested, r.BurstExecuted, r.BurstReplayed = burst.size, effects[burst.charge.ref], burst.counts.replayed.Load()
		r.BurstMostConnections, r.UnrelatedServed = burst.most.Load(), burst.served.Load()
		r.UnrelatedIdleP50, r.UnrelatedIdleP99 = burst.idle.quantile(0.5), burst.idle.quantile(0.99)
		r.UnrelatedP50, r.UnrelatedP99 = burst.during.quantile(0.5), burst.during.quantile(0.99)
		delete(effects, burst.charge.ref)
	}
	for _, n := range effects {
		r.Effects += n
		r.DoubleEffects += n - 1
	}
	for _, charge := range charges {
		var told struct{ ID int64 }
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

func (r *Report) ok() bool {
	// One copy of the burst was executed, and all others got its answer.
	burstOK := r.BurstRequested == 0 || r.BurstExecuted == 1 && r.BurstReplayed >= int64(r.BurstRequested)-1
	return r.Effects == r.Requested && r.DoubleEffects == 0 && r.LostAcks == 0 && r.stuck == 0 && r.BalanceOK && burstOK
}

// onlySlow reports whether all that is off is that time ran out for some charges.
func (r *Report) onlySlow() bool {
	inTime := *r
	inTime.Requested, inTime.stuck = r.Effects, 0
	if r.BurstExecuted <= 1 {
		inTime.BurstRequested = 0
	}
	return r.stuck > 0 && r.Requested-r.Effects <= r.stuck && r.Effects <= r.Requested && inTime.ok()
}

// Verdict says in words what the report means, and whether the program has shown
// what it is for. Naive keys go wrong, which is what they are for.
func (r *Report) Verdict(naive bool) (verdict string, ok bool) {
	switch {
	case !r.ok() && naive:
		ok, verdict = true, "It went wrong, which is what --naive is for: key, money and answer are three commits,\n"+
			"and connections died between them. Without --naive they are one."
	case !r.ok() && r.onlySlow():
		verdict = "Nothing is wrong with what was answered, but not every charge was: give it a longer -timeout,\n" +
			"or a larger -kill-every."
	case !r.ok():
		verdict = "Something is off: this is a bug in samecommit. Please report it with the lines above."
	case r.options.CutEvery > 0 && r.CommitsCut == 0:
		verdict = "Nothing is off, but no reply to COMMIT was cut, so this run proves nothing about lost ones."
	case naive:
		ok, verdict = true, "Nothing went wrong this time, by luck: try a larger -n, or a smaller -kill-every or -cut-every."
	default:
		ok, verdict = true, "Every charge took effect exactly once, and every answer was true."
	}
	if r.stuck > 0 {
		last := ""
		if r.lastRefusal != "" {
			last = "; the last answer to one of them: " + r.lastRefusal
		}
		verdict = fmt.Sprintf("%d charges were not acknowledged within %s%s\n%s", r.stuck, r.options.Timeout, last, verdict)
	}
	return verdict, ok
}

// euros are cents, printed as euros with thousands apart.
type euros int64

func (e euros) String() string {
	whole, sign := strconv.FormatInt(int64(max(e, -e)/100), 10), ""
	if e < 0 {
		sign = "-"
	}
	for at := len(whole) - 3; at > 0; at -= 3 {
		whole = whole[:at] + "," + whole[at:]
	}
	return fmt.Sprintf("%s%s.%02d EUR", sign, whole, max(e, -e)%100)
}

// Print writes the report as a table.
func (r *Report) Print(w io.Writer) error {
	type row struct {
		name  string
		value any
	}
	rows := []row{
		{"charges requested", r.Requested},
		{"effects in the ledger", r.Effects},
		{"double effects", r.DoubleEffects},
		{"lost acknowledgements", r.LostAcks},
		{"never acknowledged", r.stuck},
		{"answers replayed", r.Replayed},
		{"connections killed", r.killed},
		{"replies to COMMIT cut", r.CommitsCut},
		{"sum of balances before", euros(r.before)},
		{"sum of balances after", euros(r.after)},
		{"balances not as in the ledger", r.wrongAccounts},
	}
	if r.BurstRequested > 0 {
		rows = append(rows,
			row{"one charge, sent at once", r.BurstRequested},
			row{"its effects in the ledger", r.BurstExecuted},
			row{"its answers replayed", r.BurstReplayed},
			row{"most connections in use for it", r.BurstMostConnections},
			row{"unrelated requests meanwhile", r.UnrelatedServed},
			row{"their median, idle", r.UnrelatedIdleP50},
			row{"their median, meanwhile", r.UnrelatedP50},
			row{"their p99, idle", r.UnrelatedIdleP99},
			row{"their p99, meanwhile", r.UnrelatedP99},
		)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, row := range rows {
		// Only the numbers are aligned right: names are padded by hand.
		if _, err := fmt.Fprintf(table, "%-30s\t%v\t\n", row.name, row.value); err != nil {
			return err
		}
	}
	return table.Flush()
}
