//go:build unix

package chaos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"testing/iotest"
	"time"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// httpClientVariable makes this test binary an HTTP client with that script.
const httpClientVariable = "SAMECOMMIT_CHAOS_HTTP_CLIENT"

// httpTold is a line that a client process writes for each whole answer.
type httpTold struct {
	Order  int
	Answer *httpAnswer
}

// httpAnswer is an answer as a client has got it.
type httpAnswer struct {
	Status   int
	Replayed bool
	// Effect is the one that the handler tells of, if that has answered.
	Effect string
	// Message is the answer as it is recorded, with every header that was sent but for
	// those below.
	Message []byte
}

// unrecorded are the headers in which a replay may differ from the first answer.
var unrecorded = map[string]bool{"Date": true, httpidem.DefaultReplayedHeader: true, "Content-Length": true}

// newHTTPAnswer reads the whole of an answer.
func newHTTPAnswer(response *http.Response) (*httpAnswer, error) {
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	var message bytes.Buffer
	fmt.Fprintf(&message, "HTTP/1.1 %s\r\n", response.Status)
	_ = response.Header.WriteSubset(&message, unrecorded) // into memory
	fmt.Fprintf(&message, "Content-Length: %d\r\n\r\n", len(body))
	message.Write(body)
	return &httpAnswer{
		Status: response.StatusCode, Replayed: response.Header.Get(httpidem.DefaultReplayedHeader) == "true",
		Effect: response.Header.Get(chargeHeader), Message: message.Bytes(),
	}, nil
}

// settled reports whether the answer is the last word on its order.
func (a *httpAnswer) settled() bool {
	return a.Status == http.StatusCreated || a.Status == http.StatusPaymentRequired
}

func (a *httpAnswer) String() string {
	head, _, _ := bytes.Cut(a.Message, []byte("\r\n\r\n"))
	return fmt.Sprintf("%q, replayed %t", head, a.Replayed)
}

// httpClient sends requests through a Transport.
type httpClient struct {
	hook      *httpHook
	url       string
	base      http.Transport
	transport httpidem.Transport
	// told is called for each whole answer, also one that the Transport gives up.
	told func(*httpTold)
}

func newHTTPClient(proxy string, hook *httpHook, told func(*httpTold)) *httpClient {
	c := &httpClient{hook: hook, url: "http://" + proxy + "/charges", told: told}
	c.base.MaxIdleConnsPerHost = httpWorkers
	// The budget is for servers that are overloaded. Ours are dead.
	c.transport = httpidem.Transport{Base: (*httpTries)(c), RequireKey: true, MinDelay: 20 * time.Millisecond, Budget: 1 << 20}
	return c
}

// httpTries are what the Transport of a client makes.
type httpTries httpClient

type orderKey struct{}

// RoundTrip makes one try.
func (c *httpTries) RoundTrip(request *http.Request) (*http.Response, error) {
	ctx := request.Context()
	c.hook.begin()
	c.hook.hook(hookBefore)
	response, err := c.base.RoundTrip(request.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		WroteRequest: func(httptrace.WroteRequestInfo) { c.hook.hook(hookSent) },
	})))
	if err != nil {
		return nil, err
	}
	c.hook.hook(hookAnswered)
	var read bytes.Buffer
	body := response.Body
	response.Body = io.NopCloser(io.TeeReader(body, &read))
	answer, err := newHTTPAnswer(response)
	_ = body.Close()
	response.Body = io.NopCloser(&read)
	if err != nil { // which whoever reads the body is told
		response.Body = io.NopCloser(io.MultiReader(&read, iotest.ErrReader(err)))
		return response, nil
	}
	c.hook.hook(hookReturned)
	c.told(&httpTold{Order: ctx.Value(orderKey{}).(int), Answer: answer})
	return response, nil
}

// ask sends a request for the order once more, whoever has before.
func (c *httpClient) ask(ctx context.Context, order int, charge chargeOrder) (*httpAnswer, error) {
	text, err := json.Marshal(charge)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(context.WithValue(ctx, orderKey{}, order), http.MethodPost, c.url, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set(httpidem.DefaultHeader, strconv.Quote(orderID(order)))
	response, err := c.transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	return newHTTPAnswer(response)
}

// orderID is the key of an order, which outlives whoever asks for it.
func orderID(order int) string { return fmt.Sprintf("order-%06d", order) }

// runHTTPClient asks for each order until it is settled.
func runHTTPClient(text string) error {
	s := &httpScript{}
	if err := json.Unmarshal([]byte(text), s); err != nil {
		return err
	}
	var mu sync.Mutex
	c := newHTTPClient(s.Proxy, newHTTPHook(s), func(told *httpTold) {
		line, err := json.Marshal(told)
		if err != nil {
			panic(err) // numbers and bytes always marshal
		}
		mu.Lock()
		defer mu.Unlock()
		fmt.Println(string(line))
	})
	var group sync.WaitGroup
	for _, next := range s.Next {
		group.Go(func() {
			for order := next; order < s.Orders; order += len(s.Next) {
				for {
					answer, err := c.ask(context.Background(), order, chargeOrder{})
					if err == nil && answer.settled() {
						break
					}
				}
			}
		})
	}
	group.Wait()
	return nil
}
