//go:build unix

package chaos_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgcut"
)

var httpPoints = flag.Int("chaos.httppoints", 0, "how many points TestHTTPCuts cuts at, spread over all; 0 means every one, or 120 with -short")

// httpPoint is a place between two bytes of a request or of its first answer.
type httpPoint struct {
	status int
	from   pgcut.Direction
	bytes  int
	mode   pgcut.Mode
}

func (p httpPoint) String() string {
	return fmt.Sprintf("%d, %s after %d bytes of the %s", p.status, p.mode, p.bytes, sideNames[p.from])
}

var (
	httpSides = []pgcut.Direction{pgcut.Frontend, pgcut.Backend}
	sideNames = map[pgcut.Direction]string{pgcut.Frontend: "request", pgcut.Backend: "answer"}
)

// httpTrial is one order, which is cut at a point, or at none.
type httpTrial struct {
	order  int
	status int
	point  *httpPoint

	mu sync.Mutex
	// lengths are those of the messages that have come, sent the answers among them,
	// whether or not the client has got them.
	lengths map[pgcut.Direction][]int
	sent    []*httpAnswer
	wrong   error
}

// cut cuts the first message from the point's side.
func (tr *httpTrial) cut(from pgcut.Direction, message []byte) *httpCut {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.lengths[from] = append(tr.lengths[from], len(message))
	if tr.point == nil || from != tr.point.from || len(tr.lengths[from]) > 1 {
		return nil
	}
	return &httpCut{bytes: min(tr.point.bytes, len(message)), mode: tr.point.mode}
}

// httpCutter makes one trial after another, through a proxy of its own.
type httpCutter struct {
	pool    *pgxpool.Pool
	proxy   *httpProxy
	client  *httpClient
	current atomic.Pointer[httpTrial]
}

func newHTTPCutter(t *testing.T, pool *pgxpool.Pool, server string) *httpCutter {
	t.Helper()
	c := &httpCutter{pool: pool}
	c.proxy = newHTTPProxy(t, func(from pgcut.Direction, message []byte) *httpCut { return c.current.Load().cut(from, message) }, c.answered)
	c.proxy.serverUp(server)
	c.client = newHTTPClient(c.proxy.address, newHTTPHook(&httpScript{}), func(*httpTold) {})
	c.client.transport.MinDelay, c.client.transport.MaxAttempts = 1, 2
	return c
}

// answered compares an answer with what the database holds, before anybody has the answer.
func (c *httpCutter) answered(request *http.Request, answer *httpAnswer) {
	tr := c.current.Load()
	err := c.wantRecord(request.Context(), tr, answer)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.sent = append(tr.sent, answer)
	tr.wrong = errors.Join(tr.wrong, err)
}

func (c *httpCutter) wantRecord(ctx context.Context, tr *httpTrial, answer *httpAnswer) error {
	records, err := httpRecords(ctx, c.pool, orderID(tr.order))
	if err != nil {
		return err
	}
	record, found := records[orderID(tr.order)]
	switch {
	case answer.Status == http.StatusConflict:
		return nil // the first try is at work
	case answer.Status != tr.status:
		return fmt.Errorf("answered %v", answer)
	case answer.settled():
		return record.fits(answer)
	case found:
		return fmt.Errorf("the key has %+v behind %v", record, answer)
	}
	return nil
}

// asks is how often a trial asks at most until it has two answers.
const asks = 4

// try asks until an answer has come whole, and once more.
func (c *httpCutter) try(ctx context.Context, tr *httpTrial) (first *httpAnswer, err error) {
	tr.lengths = make(map[pgcut.Direction][]int)
	c.current.Store(tr)
	// So that it is our Transport that asks again, and not net/http, which does where a
	// connection was in use before.
	defer c.client.base.CloseIdleConnections()
	var got []*httpAnswer
	for n := 0; len(got) < 2; n++ {
		answer, err := c.client.ask(ctx, tr.order, chargeOrder{Status: tr.status, Size: 40})
		if err == nil {
			got = append(got, answer)
		} else if n == asks {
			return nil, err
		}
	}
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if err := errors.Join(tr.wrong, c.wantRecord(ctx, tr, got[0])); err != nil || !got[0].settled() {
		return got[0], err
	}
	fresh := 0
	for _, answer := range append(tr.sent, got...) {
		if answer.settled() && !bytes.Equal(answer.Message, got[0].Message) {
			return nil, fmt.Errorf("answered %v and %v", got[0], answer)
		}
	}
	for _, answer := range tr.sent {
		if answer.settled() && !answer.Replayed {
			fresh++
		}
	}
	// Of a request that was cut after its last byte the server may be at work when the
	// next one comes, and its answer never comes by here.
	replay := tr.point != nil && tr.point.from == pgcut.Backend && tr.point.bytes < tr.lengths[pgcut.Backend][0]
	either := tr.point != nil && tr.point.from == pgcut.Frontend && tr.point.bytes == tr.lengths[pgcut.Frontend][0]
	if !got[1].Replayed || !either && (fresh != 1 || got[0].Replayed != replay) {
		return nil, fmt.Errorf("%d answers were fresh, and the client got %v and %v", fresh, got[0], got[1])
	}
	return got[0], nil
}

// TestHTTPCuts cuts between any two bytes of a request and of its first answer: there is
// one effect, it is committed before the first byte of the answer, and the next try gets
// that answer byte for byte.
func TestHTTPCuts(t *testing.T) {
	t.Parallel()
	start := time.Now()
	pool := newClients(t).pool
	handler, err := newHTTPHandler(pool, pgx.ReadCommitted, newHTTPHook(&httpScript{}))
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	cutters := make([]*httpCutter, workers)
	for i := range cutters {
		cutters[i] = newHTTPCutter(t, pool, server.Listener.Addr().String())
	}

	var points []httpPoint
	statuses := []int{http.StatusCreated, http.StatusPaymentRequired, http.StatusInternalServerError}
	for i, status := range statuses {
		tr := &httpTrial{order: i, status: status}
		if _, err := cutters[0].try(t.Context(), tr); err != nil {
			t.Fatalf("%d, without a cut: %v", status, err)
		}
		for _, from := range httpSides {
			for n := range tr.lengths[from][0] + 1 {
				points = append(points, httpPoint{status, from, n, pgcut.Reset}, httpPoint{status, from, n, pgcut.Close})
			}
		}
	}
	whole := len(points)
	if count := size(*httpPoints, whole, 120); count < whole {
		points = spread(points, count)
	}
	var mu sync.Mutex
	type cell struct {
		status int
		from   pgcut.Direction
	}
	told := make(map[cell]map[kind]int)
	queue := make(chan int)
	var group sync.WaitGroup
	for _, c := range cutters {
		group.Go(func() {
			for n := range queue {
				p := points[n]
				first, err := c.try(t.Context(), &httpTrial{order: len(statuses) + n, status: p.status, point: &p})
				if err != nil {
					t.Errorf("%v: %v", p, err)
					continue
				}
				what := executed
				if first.Replayed {
					what = replayed
				}
				mu.Lock()
				if told[cell{p.status, p.from}] == nil {
					told[cell{p.status, p.from}] = make(map[kind]int)
				}
				told[cell{p.status, p.from}][what]++
				mu.Unlock()
			}
		})
	}
	for n := range points {
		queue <- n
	}
	close(queue)
	group.Wait()

	rows := [][]any{{"answer", "cut in the", "points", "then executed", "then replayed"}}
	for _, status := range statuses {
		for _, from := range httpSides {
			n := told[cell{status, from}]
			rows = append(rows, []any{status, sideNames[from], n[executed] + n[replayed], n[executed], n[replayed]})
			if n[executed]+n[replayed] == 0 {
				t.Errorf("%d: no %s was cut", status, sideNames[from])
			}
		}
	}
	t.Logf("%d of %d points in %v, %s\n%s", len(points), whole, time.Since(start).Round(time.Second), violations(t), table(rows))
}
