package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// group is peers that are compared with its first.
type group struct {
	name  string
	about string
	peers []peer
	// replays says that the keys have been used before.
	replays bool
}

var groups = []group{
	{name: "fresh", about: "an order under a fresh key", peers: fresh},
	{name: "replay", about: "the recorded answer to an order", peers: replay, replays: true},
	{name: "batch", about: fmt.Sprintf("%d orders in one transaction", batchSize), peers: batch},
}

// replayed is how many keys the replays choose from.
const replayed = 500

// replayedIDs are ids of keys to choose from, of which there are few with -short.
func replayedIDs(opts *options) []string {
	if opts.short {
		return newIDs(20)
	}
	return newIDs(replayed)
}

// oneOf returns a function that chooses one of the ids.
func oneOf(ids []string) func() string {
	return func() string { return ids[rand.IntN(len(ids))] }
}

// answer does the operation once under each id.
func answer(ctx context.Context, op operation, ids []string) error {
	for _, id := range ids {
		if err := op(ctx, id); err != nil {
			return err
		}
	}
	return nil
}

// chosen are the peers that the flags select, and with any other the first.
func (g *group) chosen(opts *options) []*peer {
	var chosen []*peer
	matched := false
	for i := range g.peers {
		matches := opts.selected.MatchString(g.name + "/" + g.peers[i].name)
		matched = matched || matches
		if matches || i == 0 {
			chosen = append(chosen, &g.peers[i])
		}
	}
	if !matched {
		return nil
	}
	return chosen
}

// measure lets the peers take turns, and prints what came of it. Link is nil
// where nothing is to be added to a round trip.
func (g *group) measure(ctx context.Context, s *server, opts *options, workers int, link *proxy) (err error) {
	var contestants []*contestant
	defer func() {
		for _, c := range contestants {
			err = errors.Join(err, c.close(context.WithoutCancel(ctx)))
		}
	}()
	for _, peer := range g.chosen(opts) {
		c, err := g.contestant(ctx, s, peer, workers, link)
		if err != nil {
			return fmt.Errorf("%s: %w", peer.name, err)
		}
		contestants = append(contestants, c)
	}
	if len(contestants) == 0 {
		return nil
	}
	if err := takeTurns(ctx, opts, contestants); err != nil {
		return err
	}
	for _, c := range contestants {
		if err := c.verify(ctx); err != nil {
			return fmt.Errorf("%s: %w", c.peer.name, err)
		}
	}
	fmt.Printf("\n%s: %s, %d workers%s\n", g.name, g.about, workers, link)
	return printSlots(contestants)
}

// takeTurns gives each contestant a slot in every round, which begins with another one.
func takeTurns(ctx context.Context, opts *options, contestants []*contestant) error {
	for round := range opts.rounds {
		for i := range contestants {
			c := contestants[(round+i)%len(contestants)]
			measured, err := c.load.run(ctx, opts.slot/5, func(ctx context.Context) error { return pause(ctx, opts.slot) })
			if err != nil {
				return fmt.Errorf("%s: %w", c.peer.name, err)
			}
			c.slots = append(c.slots, measured)
		}
	}
	return nil
}

// printSlots prints a row for each contestant, as ratios to the first.
func printSlots(contestants []*contestant) error {
	base := contestants[0]
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	rows := []string{fmt.Sprintf("PEER\tRATIO TO %s\tOPS/S\tP50 ms\tP99 ms\tCPU RATIO\tSERVER µs\tCLIENT µs\tSLOTS\t", base.peer.name)}
	for _, c := range contestants {
		var ratios, processor []float64
		for round, slot := range c.slots {
			other := base.slots[round]
			ratios = append(ratios, slot.rate()/other.rate())
			if slot.server > 0 {
				processor = append(processor, float64(other.server+other.client)/float64(slot.server+slot.client))
			}
		}
		rows = append(rows, fmt.Sprintf("%s\t%s\t%.0f\t%.2f\t%.2f\t%s\t%s\t%s\t%d\t", c.peer.name, spreadOf(ratios),
			medianOf(c.slots, (*slot).rate),
			medianOf(c.slots, func(s *slot) float64 { return milliseconds(s.latency(0.5)) }),
			medianOf(c.slots, func(s *slot) float64 { return milliseconds(s.latency(0.99)) }),
			spreadOf(processor),
			microseconds(c.slots, func(s *slot) time.Duration { return s.server }),
			microseconds(c.slots, func(s *slot) time.Duration { return s.client }),
			len(c.slots)))
	}
	if _, err := fmt.Fprintln(table, strings.Join(rows, "\n")); err != nil {
		return err
	}
	return table.Flush()
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// microseconds is the median of a processor time, a dash where it is not known.
func microseconds(slots []*slot, figure func(*slot) time.Duration) string {
	median := medianOf(slots, func(s *slot) float64 { return float64(figure(s)) / float64(time.Microsecond) })
	if median == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f", median)
}

// contestant is a peer at work in a database of its own.
type contestant struct {
	peer *peer
	db   *database
	pool *pgxpool.Pool
	// sql has the pool's connections, for a peer on database/sql.
	sql  *sql.DB
	load *load
	// before are the ids of the keys that are replayed.
	before []string
	slots  []*slot
}

func (g *group) contestant(ctx context.Context, s *server, peer *peer, workers int, link *proxy) (c *contestant, err error) {
	c = &contestant{peer: peer, load: &load{workers: workers, newID: newID, backends: &backends{}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close(context.WithoutCancel(ctx)))
		}
	}()
	if c.db, err = s.empty(ctx, g.name+"/"+peer.name); err != nil {
		return c, err
	}
	if g.replays {
		if err := c.prepare(ctx); err != nil {
			return c, err
		}
		c.load.newID = oneOf(c.before)
	}
	config, err := c.db.config(workers)
	if err != nil {
		return c, err
	}
	if s.local {
		c.load.backends.watch(config)
	}
	if link != nil {
		link.through(config)
	}
	if c.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		return c, err
	}
	if peer.openSQL == nil {
		c.load.op, err = peer.open(c.pool)
		return c, err
	}
	c.sql = stdlib.OpenDBFromPool(c.pool)
	c.sql.SetMaxOpenConns(workers)
	c.sql.SetMaxIdleConns(workers) // so that it keeps what it has taken out of the pool
	c.load.op, err = peer.openSQL(c.sql)
	return c, err
}

// prepare answers the keys that are to be replayed.
func (c *contestant) prepare(ctx context.Context) error {
	pool, err := c.db.open(ctx, 1)
	if err != nil {
		return err
	}
	defer pool.Close()
	c.before = newIDs(replayed)
	answers := &pgx.Batch{}
	for _, id := range c.before {
		answers.Queue(`INSERT INTO answers (scope, id, response) VALUES ($1, $2, $3)`, scope, id, responseTo(id))
	}
	return errors.Join(fill(ctx, pool, c.before, time.Hour), pool.SendBatch(ctx, answers).Close())
}

// verify compares the rows with the operations.
func (c *contestant) verify(ctx context.Context) error {
	if err := c.giveBack(); err != nil {
		return err
	}
	done := int(c.load.done.Load())
	if err := checkCount(ctx, c.pool, "orders", done*c.peer.orders); err != nil {
		return err
	}
	if c.peer.keyTable == "" {
		return nil
	}
	return checkCount(ctx, c.pool, c.peer.keyTable, len(c.before)+done*c.peer.keys)
}

func checkCount(ctx context.Context, pool *pgxpool.Pool, table string, want int) error {
	var count int
	if err := pool.QueryRow(ctx, "SELECT count(*) FROM "+table).Scan(&count); err != nil {
		return err
	}
	if count != want {
		return fmt.Errorf("table %s has %d rows; its operations should have left %d", table, count, want)
	}
	return nil
}

func (c *contestant) close(ctx context.Context) error {
	if c.pool == nil {
		return nil
	}
	err := c.giveBack()
	c.pool.Close()
	return errors.Join(err, c.db.left(ctx))
}

// giveBack gives the connections back to the pool, where database/sql has them.
func (c *contestant) giveBack() error {
	if c.sql == nil {
		return nil
	}
	return c.sql.Close()
}
