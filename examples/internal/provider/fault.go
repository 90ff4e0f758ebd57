package provider

import "sync"

// Fault is what a provider does wrong with the first request for an order, or to it. Its
// text is for tables.
type Fault string

// The faults.
const (
	Refuses  Fault = "the provider is down, once"
	HangsUp  Fault = "the provider does it and does not answer, once"
	Declines Fault = "the provider declines" // each time
)

// Faults returns all of them.
func Faults() []Fault { return []Fault{Refuses, HangsUp, Declines} }

// Plan is the fault of each order. The zero value has none.
type Plan struct {
	mu     sync.Mutex
	faults map[string]Fault
}

// Set sets what goes wrong with an order. No fault is "".
func (p *Plan) Set(order string, fault Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.faults == nil {
		p.faults = make(map[string]Fault)
	}
	p.faults[order] = fault
}

// Next returns what goes wrong with this request. What is not each time is over then.
func (p *Plan) Next(order string) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	fault := p.faults[order]
	if fault != Declines {
		delete(p.faults, order)
	}
	return fault
}
