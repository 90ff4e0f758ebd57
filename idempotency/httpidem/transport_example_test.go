package httpidem_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"

	"github.com/samecommit/samecommit/idempotency/httpidem"
)

// The server cannot answer the first try. The second one has the same key.
func ExampleTransport() {
	first := ""
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get("Idempotency-Key")
		if first == "" {
			first = key
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Println("the same key:", key == first)
		w.WriteHeader(http.StatusCreated)
	}))
	defer server.Close()

	client := &http.Client{Transport: &httpidem.Transport{}}
	request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL, strings.NewReader(`{"amount": 500}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	response, err := client.Do(request)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = response.Body.Close() }()
	fmt.Println(response.StatusCode)
	// Output:
	// the same key: true
	// 201
}

// A durable client stores the key with what it is for, before the first send. After a crash
// it sends the row again, with the key that the row has.
func ExampleNewKey() {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Seen", r.Header.Get("Idempotency-Key"))
	}))
	defer server.Close()
	client := &http.Client{Transport: &httpidem.Transport{RequireKey: true}}

	order := struct{ Body, Key string }{`{"amount": 500}`, httpidem.NewKey()} // commit it here
	for range 2 {
		request, err := http.NewRequestWithContext(context.Background(), http.MethodPost, server.URL, strings.NewReader(order.Body))
		if err != nil {
			fmt.Println(err)
			return
		}
		request.Header.Set("Idempotency-Key", strconv.Quote(order.Key))
		response, err := client.Do(request)
		if err != nil {
			fmt.Println(err)
			return
		}
		_ = response.Body.Close()
		fmt.Println(response.Header.Get("Seen") == `"`+order.Key+`"`)
	}
	// Output:
	// true
	// true
}
