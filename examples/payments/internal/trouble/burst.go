package trouble

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// burstHold is how long a burst waits, once it is there, for the charge.
	// Shorter than the API's patience, so that most wait it out.
	burstHold = time.Second
	// workTime is about how long a charge takes between reading and writing, as
	// real handlers do. Without it duplicates would hardly ever meet.
	workTime = 5 * time.Millisecond
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

func newBurst(size int, accounts []string, lending *lending) *burst {
	b := &burst{
		size:     size,
		charge:   newCharge("burst", accounts),
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
		time.Sleep(randomPause(workTime))
	case <-ctx.Done():
	}
}

// watch returns charges with every call counted as an arrival.
func (b *burst) watch(charges http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b.arrivals.Add(1) == int64(b.size) {
			close(b.arrived)
		}
		charges.ServeHTTP(w, r.WithContext(forCharge(r.Context())))
	})
}

// run sends the burst, and returns when each copy has been acknowledged or
// limit is over.
func (b *burst) run(ctx context.Context, url, account string, limit time.Duration, stderr io.Writer) (err error) {
	defer b.release()
	if b.size == 0 {
		return nil
	}
	defer startProgress(stderr, b).stop()
	unrelated := &http.Client{Transport: &http.Transport{}, Timeout: attemptLimit}
	defer unrelated.CloseIdleConnections()
	balance := url + "/accounts/" + account
	// The first requests open connections and prepare statements, which those
	// beside the burst no longer need to.
	if _, err := measure(ctx, unrelated, balance, burstHold/4, nil); err != nil {
		return err
	}
	if b.idle, err = measure(ctx, unrelated, balance, burstHold, nil); err != nil {
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
	b.during, err = measure(ctx, unrelated, balance, burstHold, func() {
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

// measure sends requests one after the other for so long.
func measure(ctx context.Context, client *http.Client, url string, length time.Duration, served func()) (l latencies, err error) {
	for start := time.Now(); time.Since(start) < length; {
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
