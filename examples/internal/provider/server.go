// Package provider is somebody whom work asks over HTTP to do what costs money and
// cannot be undone: to charge a card, say, or to top up a phone. It has books of its
// own, idempotency keys of its own, and faults that are planned.
package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"github.com/samecommit/samecommit/examples/internal/loopback"
)

// Server is a provider whose API is HTTP: a request with the key of an earlier one gets
// the earlier one's receipt.
type Server struct {
	*loopback.Server
	// Plan is what goes wrong.
	Plan Plan

	mu    sync.Mutex
	byKey map[string]Receipt
	// byOrder is everything that was done.
	byOrder map[string][]Receipt
}

// Start returns a provider that listens on a free port of this machine.
func Start(ctx context.Context) (*Server, error) {
	s := &Server{byKey: make(map[string]Receipt), byOrder: make(map[string][]Receipt)}
	server, err := loopback.Serve(ctx, http.HandlerFunc(s.answer))
	s.Server = server
	return s, err
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
	fault := s.Plan.Next(order)
	if fault == Declines || fault == Refuses {
		return Receipt{}, fault
	}
	receipt := Receipt{ID: fmt.Sprintf("receipt %d of %s", len(s.byOrder[order])+1, order)}
	s.byOrder[order] = append(s.byOrder[order], receipt)
	s.byKey[key] = receipt
	return receipt, fault
}
