// Package provider is somebody whom work asks over HTTP to do what costs money and
// cannot be undone: to charge a card, say, or to top up a phone. It has books of its
// own, idempotency keys of its own, and faults that are planned.
package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

// Server is a provider whose API is HTTP: a request with the key of an earlier one gets
// the earlier one's receipt.
type Server struct {
	// URL is where it takes requests.
	URL    string
	server *http.Server
	ended  chan error

	mu     sync.Mutex
	faults map[string]Fault
	byKey  map[string]Receipt
	// byOrder is everything that was done.
	byOrder map[string][]Receipt
}

// Start returns a provider that listens on a free port of this machine.
func Start(ctx context.Context) (*Server, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the provider: %w", err)
	}
	s := &Server{
		URL: "http://" + listener.Addr().String(), ended: make(chan error, 1),
		faults: make(map[string]Fault), byKey: make(map[string]Receipt), byOrder: make(map[string][]Receipt),
	}
	s.server = &http.Server{Handler: http.HandlerFunc(s.answer), ReadHeaderTimeout: 5 * time.Second}
	go func() { s.ended <- s.server.Serve(listener) }()
	return s, nil
}

// Close ends it at once.
func (s *Server) Close() error {
	err := s.server.Close()
	if served := <-s.ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	return err
}

// Plan sets what goes wrong with an order. No fault is "".
func (s *Server) Plan(order string, fault Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[order] = fault
}

// Receipts are of everything that it has done for the order.
func (s *Server) Receipts(order string) []Receipt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.byOrder[order])
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	var request Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&request); err != nil {
		http.Error(w, "cannot read the request", http.StatusBadRequest)
		return
	}
	receipt, fault := s.take(r.Header.Get(keyHeader), request.Order)
	switch fault {
	case Refuses:
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	case Declines:
		http.Error(w, "declined", http.StatusPaymentRequired)
	case HangsUp:
		hangUp(w)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(receipt) // whoever asked has gone
	}
}

// hangUp closes the connection without an answer.
func hangUp(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		err = conn.Close()
	}
	if err != nil {
		http.Error(w, "cannot hang up", http.StatusInternalServerError)
	}
}

// take does it once for each key, and for each request without one.
func (s *Server) take(key, order string) (Receipt, Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if receipt, ok := s.byKey[key]; ok && key != "" {
		return receipt, ""
	}
	fault := s.faults[order]
	if fault == Declines {
		return Receipt{}, fault
	}
	delete(s.faults, order)
	if fault == Refuses {
		return Receipt{}, fault
	}
	receipt := Receipt{ID: fmt.Sprintf("receipt %d of %s", len(s.byOrder[order])+1, order)}
	s.byOrder[order] = append(s.byOrder[order], receipt)
	s.byKey[key] = receipt
	return receipt, fault
}
