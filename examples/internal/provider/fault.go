package provider

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
