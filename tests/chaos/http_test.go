//go:build unix

package chaos_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/samecommit/samecommit/internal/pgcut"
)

var ordersFlag = flag.Int("chaos.orders", 0, "how many orders TestHTTP asks for; 0 means 1,500, or 150 with -short")

const (
	httpServers, httpClients = 2, 4
	// httpWorkers is how many orders a client asks for at a time. Those of all clients ask
	// for the same ones at about the same time.
	httpWorkers = 6
	// httpTimeout ends a run in which an order is never settled. It is far longer than a
	// run takes on a busy machine.
	httpTimeout = 20 * time.Minute
	// cutPercent is of messages.
	cutPercent = 4
)

// hookAnywhere is a kill from outside, at any moment.
const hookAnywhere = "anywhere"

// Where an HTTP server and an HTTP client are killed.
var (
	serverHooks = []string{hookAnywhere, hookBefore, hookClaimed, hookEffect, hookCommit, hookSent, hookAnswered, hookReturned}
	clientHooks = []string{hookAnywhere, hookBefore, hookSent, hookAnswered, hookReturned}
)

// Where a connection of HTTP is cut.
const (
	inRequest    = "in request"
	afterRequest = "after request"
	noAnswer     = "no answer" // the server has committed, and not a byte of its answer passes
	inStatusLine = "in status line"
	inHeader     = "in header"
	inBody       = "in body"
	lastByte     = "last byte" // all but it passes
)

var cutPlaces = []string{inRequest, afterRequest, noAnswer, inStatusLine, inHeader, inBody, lastByte}

// httpRun is HTTP clients and servers that are killed, and whose connections are cut.
type httpRun struct {
	*load
	proxy  *httpProxy
	orders int
	// stdin is that of the servers, which end with its other end.
	stdin *os.File
	// stop ends the run: after the first wrong answer an order may never be settled.
	stop func()

	mu     sync.Mutex
	random *rand.Rand
	quiet  bool // nothing is cut any more
	turns  map[string]int
	kills  map[string]map[string]int // by variable and hook
	cuts   map[string]int
	// first is the first settled answer for each key that any server has sent, fresh how
	// many of them were no replay.
	first map[string]*httpAnswer
	fresh map[string]int
	// undone are the effects of answers that are no success.
	undone          []string
	answers         map[string]int
	requests, wrong int
	// again are the orders, by client, that were being asked for when that was killed.
	again map[[2]int]bool
	came  map[kind]int
}

// Whatever breaks between an HTTP client and its effect, every answer for a key is byte
// for byte the first one, and that has one effect.
func TestHTTP(t *testing.T) { //nolint:paralleltest // it counts goroutines, and kills a server of its own
	seed := newSeed(t)
	s := newServer(t)
	leaks := goleak.IgnoreCurrent()
	h := &httpRun{
		load: newLoad(t, s, seed, 0), orders: size(*ordersFlag, 1500, 150), random: rand.New(rand.NewPCG(seed, 4)),
		turns: make(map[string]int), kills: map[string]map[string]int{httpServerVariable: {}, httpClientVariable: {}}, cuts: make(map[string]int),
		first: make(map[string]*httpAnswer), fresh: make(map[string]int), answers: make(map[string]int),
		again: make(map[[2]int]bool), came: make(map[kind]int),
	}
	h.target = int64(httpClients * h.orders)
	t.Run("run", func(t *testing.T) { //nolint:paralleltest // its connections end before goroutines are counted
		h.t = t
		h.proxy = newHTTPProxy(t, h.cut, h.answered)
		stdin, parent, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _, _ = stdin.Close(), parent.Close() }()
		h.stdin = stdin
		i := &injector{load: h.load}
		h.run(t.Context(), i)
		if !t.Failed() { // else not every order has been asked for
			h.settle(t.Context())
		}
		h.audit(t.Context())
		h.report(i)
	})
	goleak.VerifyNone(t, leaks)
}

// run lets the clients work while everything breaks.
func (h *httpRun) run(parent context.Context, i *injector) {
	rounds := int64(size(0, 4, 1))
	ctx, stop := context.WithTimeout(parent, httpTimeout)
	defer stop()
	h.stop = stop
	var breaking, working sync.WaitGroup
	breaking.Go(func() {
		i.kill(ctx, rand.New(rand.NewPCG(h.seed, 2000)), h.server.config.ConnConfig.Copy(), rounds)
	})
	for range httpServers {
		breaking.Go(func() { h.keepServer(ctx) })
	}
	for n := range httpClients {
		working.Go(func() { h.keepClient(ctx, n) })
	}
	working.Wait()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		h.t.Errorf("the clients are not done after %v", httpTimeout)
	}
	stop()
	breaking.Wait()
	i.up(parent, h.server.config.ConnConfig.Copy())
}

// newScript returns that of the next process, and where that is killed: at each hook in
// turn, after a random number of requests.
func (h *httpRun) newScript(variable string, hooks []string) *httpScript {
	h.mu.Lock()
	defer h.mu.Unlock()
	hook := hooks[h.turns[variable]%len(hooks)]
	h.turns[variable]++
	return &httpScript{
		script: script{
			URL: h.server.config.ConnString(), Hook: hook, Signal: syscall.SIGKILL,
			Level: levels[h.random.IntN(len(levels))], Mode: textModes[h.random.IntN(len(textModes))],
		},
		After: 10 + h.random.Int64N(150),
	}
}

// ended notes that a process was killed. It reports whether that was the end it should
// have had.
func (h *httpRun) ended(variable, hook string, killed bool) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if killed {
		h.kills[variable][hook]++
	} else {
		h.t.Errorf("%s ended without a kill at %q", variable, hook)
	}
	return killed
}

// keepServer starts one server after another, each when the last one was killed.
func (h *httpRun) keepServer(ctx context.Context) {
	for ctx.Err() == nil {
		s := h.newScript(httpServerVariable, serverHooks)
		killed, err := h.serve(ctx, s, func(kill func() error) error {
			if s.Hook != hookAnywhere {
				return nil
			}
			until := h.calls.Load() + s.After
			poll(ctx, time.Millisecond, func() bool { return h.calls.Load() >= until })
			return kill()
		})
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			h.t.Error(err)
			return
		case !h.ended(httpServerVariable, s.Hook, killed):
			return
		}
	}
}

// serve runs a server until it is killed. meanwhile is called once it is up.
func (h *httpRun) serve(ctx context.Context, s *httpScript, meanwhile func(kill func() error) error) (killed bool, err error) {
	cmd, output, err := startProcess(ctx, httpServerVariable, s, h.stdin)
	if err != nil {
		return false, err
	}
	lines := bufio.NewReader(output)
	address, err := lines.ReadString('\n')
	if err == nil {
		address = strings.TrimSpace(address)
		h.proxy.serverUp(address)
		if err = meanwhile(cmd.Process.Kill); err != nil {
			_ = cmd.Process.Kill()
		}
		_, _ = io.Copy(io.Discard, lines) // until it ends
		h.proxy.serverGone(address)
	}
	_ = cmd.Wait()
	return wasKilled(cmd), err
}

// keepClient starts one client after another until all orders are settled. Each goes on
// where the last one was killed, with the same keys.
func (h *httpRun) keepClient(ctx context.Context, number int) {
	next := make([]int, httpWorkers)
	for n := range next {
		next[n] = n
	}
	for ctx.Err() == nil {
		s := h.newScript(httpClientVariable, clientHooks)
		s.Proxy, s.Next, s.Orders = h.proxy.address, next, h.orders
		cmd, output, err := startProcess(ctx, httpClientVariable, s, nil)
		if err != nil {
			h.t.Error(err)
			return
		}
		lines := bufio.NewReader(output)
		for n := int64(1); ; n++ {
			var told httpTold
			line, err := lines.ReadBytes('\n')
			if err != nil || json.Unmarshal(line, &told) != nil {
				break // it has ended, perhaps inside a line
			}
			h.told(number, &told)
			if told.Answer.settled() {
				next[told.Order%httpWorkers] = told.Order + httpWorkers
			}
			if s.Hook == hookAnywhere && n == s.After {
				_ = cmd.Process.Kill() // whether it has ended is seen below
			}
		}
		_, _ = io.Copy(io.Discard, lines)
		if _ = cmd.Wait(); ctx.Err() != nil || cmd.ProcessState.Success() {
			return
		}
		if !h.ended(httpClientVariable, s.Hook, wasKilled(cmd)) {
			return
		}
		h.mu.Lock()
		for _, order := range next {
			h.again[[2]int{number, order}] = true
		}
		h.mu.Unlock()
	}
}

// cut chooses where to cut a message.
func (h *httpRun) cut(from pgcut.Direction, message []byte) *httpCut {
	h.mu.Lock()
	defer h.mu.Unlock()
	if from == pgcut.Frontend {
		h.requests++
	}
	if h.quiet || h.random.IntN(100) >= cutPercent {
		return nil
	}
	cut := &httpCut{mode: pgcut.Reset}
	if h.random.IntN(2) == 0 {
		cut.mode = pgcut.Close
	}
	line := bytes.IndexByte(message, '\n')
	head := bytes.Index(message, []byte("\r\n\r\n")) + 4
	switch n := h.random.IntN(5); {
	case from == pgcut.Frontend && n < 2:
		cut.place, cut.bytes = inRequest, h.random.IntN(len(message))
	case from == pgcut.Frontend:
		cut.place, cut.bytes = afterRequest, len(message)
	case n == 0:
		cut.place = noAnswer
	case n == 1:
		cut.place, cut.bytes = inStatusLine, 1+h.random.IntN(line)
	case n == 2:
		cut.place, cut.bytes = inHeader, line+1+h.random.IntN(head-line)
	case n == 3 && len(message) > head+1:
		cut.place, cut.bytes = inBody, head+h.random.IntN(len(message)-head-1)
	default:
		cut.place, cut.bytes = lastByte, len(message)-1
	}
	h.cuts[cut.place]++
	return cut
}

// answered notes what a server has answered, whether or not its client gets it.
func (h *httpRun) answered(request *http.Request, answer *httpAnswer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	key := httpKey(request).ID
	cell := fmt.Sprint(answer.Status)
	if answer.Replayed {
		cell = string(replayed)
	}
	h.answers[cell]++
	if !answer.settled() {
		switch answer.Status {
		case http.StatusConflict, http.StatusInternalServerError, http.StatusServiceUnavailable:
			if answer.Replayed {
				h.complain("%s was recorded: %v", key, answer)
			}
		default:
			h.complain("%s was answered %v", key, answer)
		}
		if answer.Effect != "" {
			h.undone = append(h.undone, answer.Effect)
		}
		return
	}
	if answer.Status == http.StatusPaymentRequired {
		h.undone = append(h.undone, answer.Effect)
	}
	if !answer.Replayed {
		h.fresh[key]++
	}
	if h.first[key] == nil {
		h.first[key] = answer
	}
	h.same(key, answer)
}

// same complains of an answer that is not the first one.
func (h *httpRun) same(key string, answer *httpAnswer) {
	switch first := h.first[key]; {
	case first == nil:
		h.complain("a client got an answer for %s that no server has sent: %v", key, answer)
	case !bytes.Equal(answer.Message, first.Message):
		h.complain("%s was answered\n\t%v and then\n\t%v", key, first, answer)
	case h.fresh[key] > 1:
		h.complain("%s was executed %d times: %v", key, h.fresh[key], answer)
	}
}

func (h *httpRun) complain(format string, args ...any) {
	h.stop()
	if h.wrong++; h.wrong <= 5 {
		h.t.Errorf(format, args...)
	}
}

// told notes what a client has got.
func (h *httpRun) told(client int, told *httpTold) {
	h.calls.Add(1)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !told.Answer.settled() {
		return
	}
	h.same(orderID(told.Order), told.Answer)
	if asked := [2]int{client, told.Order}; h.again[asked] {
		delete(h.again, asked)
		what := executed
		if told.Answer.Replayed {
			what = replayed
		}
		h.came[what]++
	}
}

// settle asks for every order once more, now that nothing breaks.
func (h *httpRun) settle(parent context.Context) {
	ctx, stop := context.WithTimeout(parent, httpTimeout)
	defer stop()
	h.mu.Lock()
	h.quiet = true
	h.mu.Unlock()
	s := h.newScript(httpServerVariable, []string{""})
	_, err := h.serve(ctx, s, func(kill func() error) error {
		c := newHTTPClient(h.proxy.address, newHTTPHook(&httpScript{}), func(*httpTold) {})
		defer c.base.CloseIdleConnections()
		for order := range h.orders {
			answer, err := c.ask(ctx, order, chargeOrder{})
			switch {
			case err != nil:
				return fmt.Errorf("%s, with nothing left that breaks: %w", orderID(order), err)
			case !answer.settled() || !answer.Replayed:
				return fmt.Errorf("%s, with nothing left that breaks: %v", orderID(order), answer)
			}
		}
		return kill()
	})
	if err != nil {
		h.t.Error(err)
	}
}

// audit compares the answers with what the database holds.
func (h *httpRun) audit(ctx context.Context) {
	conn := h.connect(ctx)
	defer func() { _ = conn.Close(ctx) }()
	records, err := httpRecords(ctx, conn, "%")
	if err != nil {
		h.t.Fatal(err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.t.Failed() && (len(records) != h.orders || len(h.first) != h.orders) {
		h.complain("%d keys have a record or an effect, and %d an answer, want %d", len(records), len(h.first), h.orders)
	}
	kept := make(map[string]bool)
	for key, record := range records {
		for _, effect := range record.Effects {
			kept[effect] = true
		}
		if h.first[key] == nil && h.t.Failed() {
			continue // its answer was on its way when the run was ended
		}
		if err := record.fits(h.first[key]); err != nil {
			h.complain("%s: %v", key, err)
		}
	}
	for _, effect := range h.undone {
		if kept[effect] {
			h.complain("the effect %s was kept, and its answer was no success", effect)
		}
	}
}

// httpRecord is what the database has of a key.
type httpRecord struct {
	ID       string
	Response []byte
	Effects  []string
}

// fits returns an error where it is not what belongs to the settled answer.
func (r *httpRecord) fits(answer *httpAnswer) error {
	if answer == nil {
		return fmt.Errorf("nobody was answered, and the effects are %q with the record %q", r.Effects, r.Response)
	}
	var want []string
	if answer.Status == http.StatusCreated {
		want = []string{answer.Effect}
	}
	switch {
	case strings.Join(r.Effects, " ") != strings.Join(want, " "):
		return fmt.Errorf("the effects are %q, want %q of %v", r.Effects, want, answer)
	case !bytes.Equal(r.Response, answer.Message):
		return fmt.Errorf("%.300q is recorded, and the answer was %v", r.Response, answer)
	}
	return nil
}

// querier is a pool, a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// httpRecords returns those of the keys that are like the pattern.
func httpRecords(ctx context.Context, db querier, pattern string) (map[string]httpRecord, error) {
	rows, err := db.Query(ctx, `SELECT id, response, coalesce(effects, '{}')
		FROM (SELECT id, response FROM idempotency_keys WHERE scope = $1 AND expires_at IS NOT NULL AND id LIKE $2) AS k
		FULL JOIN (SELECT id, array_agg(effect) AS effects FROM effects WHERE scope = $1 AND id LIKE $2 GROUP BY id) AS e USING (id)`, httpScope, pattern)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[httpRecord])
	if err != nil {
		return nil, err
	}
	records := make(map[string]httpRecord, len(all))
	for _, r := range all {
		records[r.ID] = r
	}
	return records, nil
}

// report prints what was injected and what came of it. What never happened has proved
// nothing.
func (h *httpRun) report(i *injector) {
	h.mu.Lock()
	defer h.mu.Unlock()
	injected := make(map[string]int)
	for _, e := range i.episodes {
		injected[string(e.fault)]++
	}
	backends := []string{string(terminated)}
	if h.server.own != nil {
		backends = append(backends, string(backendKill), string(serverKill))
	}
	for _, part := range []struct {
		what   string
		places []string
		counts map[string]int
	}{
		{"servers killed", serverHooks, h.kills[httpServerVariable]},
		{"clients killed", clientHooks, h.kills[httpClientVariable]},
		{"killed clients came back and were", []string{string(executed), string(replayed)}, map[string]int{string(executed): h.came[executed], string(replayed): h.came[replayed]}},
		{"connections cut", cutPlaces, h.cuts},
		{"database", backends, injected},
		{"answered", []string{"201", "402", string(replayed), "409", "500", "503"}, h.answers},
	} {
		head, row := []any{part.what}, []any{""}
		sum := 0
		for _, place := range part.places {
			head, row = append(head, place), append(row, part.counts[place])
			sum += part.counts[place]
			if part.counts[place] == 0 && !testing.Short() && *ordersFlag == 0 && !h.t.Failed() {
				h.t.Errorf("%s, %s: never", part.what, place)
			}
		}
		if sum == 0 && !h.t.Failed() {
			h.t.Errorf("%s: never", part.what)
		}
		h.t.Logf("\n%s", table([][]any{head, row}))
	}
	h.t.Logf("%d orders, %d requests, %v, %s", h.orders, h.requests, time.Since(h.began).Round(time.Second), violations(h.t))
}
