package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

const (
	// burstHold is how long a burst waits, once it is there, for the charge.
	// Shorter than the API's patience, so that most wait it out.
	burstHold = time.Second
	// arrivalLimit is how long the charge waits for the burst to be there.
	arrivalLimit = 5 * time.Second
)

// burst is one charge that is sent many times at once. It is held open until
// all of them wait, and then some: meanwhile unrelated requests find out what
// is left of the pool.
type burst struct {
	size   int
	charge *sentCharge
	counts counts

	arrivals atomic.Int64
	arrived  chan struct{} // closed when the whole burst has reached the API
	released chan struct{} // closed when charges need not wait any longer
	release  func()        // closes released

	served atomic.Int64 // unrelated requests, while charges had to wait
	// idle and during are the unrelated requests' latencies.
	idle, during latencies
	// lending knows the connections in use; most is its answer at the release.
	lending *lending
	most    atomic.Int64
}

func newBurst(size int, lending *lending) *burst {
	b := &burst{
		size:     size,
		charge:   newCharge("burst"),
		arrived:  make(chan struct{}),
		released: make(chan struct{}),
		lending:  lending,
	}
	b.release = sync.OnceFunc(func() {
		_, most := lending.inUse()
		b.most.Store(int64(most))
		close(b.released)
	})
	return b
}

// work is what a charge does between reading and writing. Before the release
// there are no charges but the burst's.
func (b *burst) work(ctx context.Context) {
	select {
	case <-b.released:
		time.Sleep(randomPause(handlerPause))
	case <-ctx.Done():
	}
}

// watch returns payments with every call counted as an arrival.
func (b *burst) watch(payments charger) charger { return &watched{payments, b} }

type watched struct {
	charger
	burst *burst
}

func (w *watched) charge(ctx context.Context, key string, fingerprint idempotency.Fingerprint, request *chargeRequest) (Charge, bool, error) {
	if w.burst.arrivals.Add(1) == int64(w.burst.size) {
		close(w.burst.arrived)
	}
	return w.charger.charge(forCharge(ctx), key, fingerprint, request)
}

// run sends the burst, and returns when each copy has been acknowledged or
// limit is over.
func (b *burst) run(ctx context.Context, url string, limit time.Duration, stderr io.Writer) (err error) {
	defer b.release()
	if b.size == 0 {
		return nil
	}
	defer startProgress(stderr, b).stop()
	unrelated := &http.Client{Transport: &http.Transport{}, Timeout: attemptLimit}
	defer unrelated.CloseIdleConnections()
	balance := url + "/accounts/" + accountIDs[0]
	if b.idle, err = measure(ctx, unrelated, balance, nil); err != nil {
		return err
	}

	client := newClient(url, &b.counts, b.size)
	defer client.close()
	sendCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var copies sync.WaitGroup
	defer copies.Wait()
	for range b.size {
		copies.Go(func() { client.send(sendCtx, b.charge) })
	}
	select {
	case <-b.arrived:
	case <-time.After(arrivalLimit):
	case <-sendCtx.Done():
	}
	// Not after the measurement, which may wait for a connection itself.
	time.AfterFunc(burstHold, b.release)
	b.during, err = measure(ctx, unrelated, balance, func() {
		select {
		case <-b.released:
		default:
			b.served.Add(1)
		}
	})
	return err
}

func (b *burst) String() string {
	now, _ := b.lending.inUse()
	return fmt.Sprintf("one charge %d times at once  attempts %d  acknowledged %d  connections in use %d  unrelated requests %d",
		b.size, b.counts.attempts.Load(), b.counts.executed.Load()+b.counts.replayed.Load(), now, b.served.Load())
}

// latencies are sorted.
type latencies []time.Duration

// measure sends requests one after the other for as long as a burst is held.
func measure(ctx context.Context, client *http.Client, url string, served func()) (l latencies, err error) {
	for start := time.Now(); time.Since(start) < burstHold; {
		sent := time.Now()
		if err := get(ctx, client, url); err != nil {
			return nil, fmt.Errorf("read a balance beside the burst; where ulimit -n is low, use a smaller -burst: %w", err)
		}
		l = append(l, time.Since(sent))
		if served != nil {
			served()
		}
	}
	slices.Sort(l)
	return l, nil
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // read to its end below
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s", response.Status, body)
	}
	return err
}

// micros are microseconds.
type micros int64

func (m micros) String() string { return fmt.Sprintf("%d µs", int64(m)) }

// quantile returns 0 where nothing was measured.
func (l latencies) quantile(q float64) micros {
	if len(l) == 0 {
		return 0
	}
	return micros(l[int(float64(len(l)-1)*q)].Microseconds())
}
