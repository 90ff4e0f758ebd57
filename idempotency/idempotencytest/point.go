package idempotencytest

import (
	"fmt"

	"github.com/samecommit/samecommit/internal/pgcut"
)

// point is a statement of a call and the side of it at which to cut.
type point struct {
	statement *statement
	// index counts the call's statements from 0; total is how many there are.
	index, total int
	replyLost    bool
}

func points(statements []*statement) []*point {
	var all []*point
	for i, s := range statements {
		all = append(all, &point{statement: s, index: i, total: len(statements)})
		if s.reply != 0 {
			all = append(all, &point{statement: s, index: i, total: len(statements), replyLost: true})
		}
	}
	return all
}

// cut returns the point in terms of messages.
func (p *point) cut() *pgcut.Point {
	if p.replyLost {
		return &pgcut.Point{From: pgcut.Backend, Number: p.statement.reply, Mode: pgcut.Reset}
	}
	return &pgcut.Point{From: pgcut.Frontend, Number: p.statement.sent, Mode: pgcut.Reset}
}

// met reports whether a run with these messages was cut at the point: a run may
// send other statements than the one that was counted.
func (p *point) met(cut *pgcut.Cut, messages []pgcut.Message) bool {
	got := statements(messages)
	if cut == nil || p.index >= len(got) {
		return false
	}
	s := got[p.index]
	if p.replyLost {
		return s.reply == cut.Message.Number && s.commit == p.statement.commit
	}
	return s.sent == cut.Message.Number && s.commit == p.statement.commit
}

// String is the name of the subtest. It has no characters that mean something
// to -run.
func (p *point) String() string {
	name := fmt.Sprintf("statement %d", p.index+1)
	if p.statement.commit {
		name += " COMMIT"
	}
	if p.replyLost {
		return name + ", reply lost"
	}
	return name + ", not sent"
}

// event tells what happened.
func (p *point) event() string {
	which := fmt.Sprintf("statement %d of %d", p.index+1, p.total)
	if p.statement.commit {
		which = fmt.Sprintf("the COMMIT (%s)", which)
	}
	if p.replyLost {
		return fmt.Sprintf("the server had done %s and the connection was reset before its reply", which)
	}
	return fmt.Sprintf("the connection was reset before the server got %s", which)
}
