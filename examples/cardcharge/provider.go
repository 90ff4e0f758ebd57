package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// fault is what the provider does wrong with the first request for an order, or to it.
type fault string

const (
	refuses  fault = "the provider is down, once"
	hangsUp  fault = "the provider charges and does not answer, once"
	declines fault = "the provider declines the card"
)

// chargeRequest is what the provider is asked for.
type chargeRequest struct {
	Order string `json:"order"`
	Cents int    `json:"cents"`
}

// charge is what it answers.
type charge struct {
	ID string `json:"id"`
}

// provider charges cards, as those do whose API is HTTP: a request with the key of an
// earlier one gets the earlier one's charge.
type provider struct {
	url    string
	server *http.Server
	ended  chan error

	mu     sync.Mutex
	faults map[string]fault
	byKey  map[string]charge
	// charged counts what each order's card was charged.
	charged map[string]int
}

func startProvider(ctx context.Context) (*provider, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the provider: %w", err)
	}
	p := &provider{
		url: "http://" + listener.Addr().String(), ended: make(chan error, 1),
		faults: make(map[string]fault), byKey: make(map[string]charge), charged: make(map[string]int),
	}
	p.server = &http.Server{Handler: http.HandlerFunc(p.charge), ReadHeaderTimeout: 5 * time.Second}
	go func() { p.ended <- p.server.Serve(listener) }()
	return p, nil
}

func (p *provider) close() error {
	err := p.server.Close()
	if served := <-p.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// plan sets what goes wrong with an order.
func (p *provider) plan(order string, fault fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults[order] = fault
}

func (p *provider) charges(order string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.charged[order]
}

func (p *provider) charge(w http.ResponseWriter, r *http.Request) {
	var request chargeRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&request); err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	made, fault := p.take(r.Header.Get("Idempotency-Key"), request.Order)
	switch fault {
	case refuses:
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	case declines:
		http.Error(w, "declined", http.StatusPaymentRequired)
	case hangsUp:
		panic(http.ErrAbortHandler) // net/http closes the connection
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(made) // whoever asked has gone
	}
}

// take charges once for each key, and for each request without one.
func (p *provider) take(key, order string) (charge, fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if made, ok := p.byKey[key]; ok && key != "" {
		return made, ""
	}
	fault := p.faults[order]
	if fault == declines {
		return charge{}, fault
	}
	delete(p.faults, order)
	if fault == refuses {
		return charge{}, fault
	}
	p.charged[order]++
	made := charge{ID: fmt.Sprintf("charge %d of %s", p.charged[order], order)}
	p.byKey[key] = made
	return made, fault
}
