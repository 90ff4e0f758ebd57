package pgcut

import "fmt"

// Direction is a side that sends messages.
type Direction byte

// The two sides.
const (
	Frontend Direction = 'F'
	Backend  Direction = 'B'
)

// Mode is a way in which a connection ends.
type Mode string

// The ways.
const (
	// Reset is a TCP reset on both sides.
	Reset Mode = "reset"
	// Close is an orderly end. The server still works on what it has got.
	Close Mode = "close"
	// Silence lets nothing pass any more and tells nobody. The server's side
	// stays open, also when the client closes, until Cutter.Close.
	Silence Mode = "silence"
	// Outage is Reset, and every later attempt to connect is refused.
	Outage Mode = "outage"
)

// Point is where and how to cut.
type Point struct {
	From Direction
	// Number is the message at which to cut, counted from 1 for each direction,
	// over all connections together.
	Number int
	// Commit cuts at the next message that commits, whatever its number.
	Commit bool
	// After lets that message pass first.
	After bool
	Mode  Mode
}

func (p *Point) hits(message *Message) bool {
	if p.From != message.From {
		return false
	}
	if p.Commit {
		return message.Commit
	}
	return p.Number == message.Number
}

// String returns, for example, "F12 before reset" or "B commit after close".
func (p Point) String() string {
	when := "before"
	if p.After {
		when = "after"
	}
	if p.Commit {
		return fmt.Sprintf("%c commit %s %s", p.From, when, p.Mode)
	}
	return fmt.Sprintf("%c%d %s %s", p.From, p.Number, when, p.Mode)
}
