package trouble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	// firstRound is how long the first round takes at least, so that however
	// few charges there are, many connections die among them.
	firstRound = 2 * time.Second
	// chargesAtOnce bounds how many distinct charges are under way.
	chargesAtOnce = 16
)

// load is many charges, each sent many times, while connections break.
type load struct {
	options *Options
	cutter  *cutter
	charges []*sentCharge
	counts  counts
}

func newLoad(options *Options, cutter *cutter) *load {
	l := &load{options: options, cutter: cutter}
	for i := range options.Charges {
		l.charges = append(l.charges, newCharge(fmt.Sprintf("order-%06d", i+1), options.Accounts))
	}
	return l
}

// run sends every charge in every round, and breaks connections until the last.
func (l *load) run(ctx context.Context, api *API, stderr io.Writer) (err error) {
	client := newClient(api.URL, &l.counts, chargesAtOnce*l.options.AtOnce)
	defer client.close()
	killer, err := startKiller(ctx, api, l.options.KillEvery, &l.counts)
	if err != nil {
		return err
	}
	l.cutter.start(l.options.CutEvery, &l.counts)
	defer startProgress(stderr, &l.counts).stop()
	defer func() {
		l.cutter.stop()
		err = errors.Join(err, killer.stop())
	}()

	loadCtx, cancel := context.WithTimeout(ctx, l.options.Timeout)
	defer cancel()
	for round := range 1 + l.options.Again {
		if round > 0 && round == l.options.Again {
			// The last round is left in peace, so that a charge which nobody
			// has acknowledged after it is stuck, and not merely unlucky.
			l.cutter.stop()
			if err := killer.stop(); err != nil {
				return err
			}
		}
		l.sendAll(loadCtx, client, round == 0)
	}
	return ctx.Err()
}

// sendAll sends every charge several times at once and returns when each of
// these has been acknowledged or ctx has ended. Paced, it takes its time.
func (l *load) sendAll(ctx context.Context, client *client, paced bool) {
	start := time.Now()
	slots := make(chan struct{}, chargesAtOnce)
	var running sync.WaitGroup
	defer running.Wait()
	for i, charge := range l.charges {
		if paced && !pause(ctx, time.Until(start.Add(firstRound*time.Duration(i)/time.Duration(len(l.charges))))) {
			return
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		running.Go(func() {
			var duplicates sync.WaitGroup
			for range l.options.AtOnce {
				duplicates.Go(func() { client.send(ctx, charge) })
			}
			duplicates.Wait()
			<-slots
		})
	}
}
