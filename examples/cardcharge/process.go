package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/jackc/pgx/v5/pgxpool"
)

// point is where a process that takes an order may be killed.
type point string

const (
	started   point = "before the claim"
	claimed   point = "before the charge"
	charged   point = "after the charge, before the step is recorded"
	recorded  point = "after the step is recorded"
	booked    point = "after the booking, before the commit"
	committed point = "after the commit, before anybody is told"
)

// taskVariable makes this program a process that takes one order.
const taskVariable = "SAMECOMMIT_CARDCHARGE_TASK"

// task is one order for a process of its own, which is killed at a point.
type task struct {
	URL, Database, Provider string
	Order                   string
	Cents                   int
	KillAt                  point
	Naive                   bool
}

// answer is what the process says.
type answer struct {
	Booking  Booking
	Declined bool
	Err      string
}

// do takes the order in a process of its own. killed says that it was, and so has said
// nothing.
func (t *task) do(ctx context.Context, stderr io.Writer) (said answer, killed bool, err error) {
	program, err := os.Executable()
	if err != nil {
		return said, false, err
	}
	text, err := json.Marshal(t)
	if err != nil {
		return said, false, err
	}
	process := exec.CommandContext(ctx, program)
	process.Env = append(os.Environ(), taskVariable+"="+string(text))
	process.Stderr = stderr
	output, err := process.Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == -1 && ctx.Err() == nil {
			return said, true, nil
		}
		return said, false, fmt.Errorf("the process of %s: %w", t.Order, err)
	}
	return said, false, json.Unmarshal(output, &said)
}

// runTask is the process.
func runTask(ctx context.Context, text string, stdout io.Writer) error {
	var t task
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return err
	}
	config, err := pgxpool.ParseConfig(t.URL)
	if err != nil {
		return err
	}
	config.ConnConfig.Database = t.Database
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	shop, err := newShop(pool, t.Provider, t.dieAt)
	if err != nil {
		return err
	}
	t.dieAt(started)
	var said answer
	if t.Naive {
		said.Booking, err = shop.naiveOrder(ctx, pool, t.Order, t.Cents)
	} else {
		said.Booking, err = shop.order(ctx, t.Order, t.Cents)
	}
	if said.Declined = errors.Is(err, errDeclined); err != nil {
		said.Err = err.Error()
	}
	t.dieAt(committed)
	return json.NewEncoder(stdout).Encode(said)
}

// dieAt kills the process, as the kernel does that runs out of memory: no deferred
// function runs, and no connection is told.
func (t *task) dieAt(here point) {
	if here != t.KillAt {
		return
	}
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err == nil {
		select {} // the signal is on its way
	}
	fmt.Fprintln(os.Stderr, "cardcharge: cannot kill this process:", err)
	os.Exit(exitFailed)
}
