package idempotencytest

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/samecommit/samecommit/internal/pgcut"
)

// point is a statement of a call and the side of it at which to cut.
type point struct {
	statement *statement
	// name is the statement's, and its alone.
	name string
	// index counts the call's statements from 0; total is how many there are.
	index, total int
	replyLost    bool
}

func points(statements []*statement) []*point {
	names := names(statements)
	var all []*point
	for i, s := range statements {
		p := point{statement: s, name: names[s], index: i, total: len(statements)}
		all = append(all, &p)
		if s.replied {
			lost := p
			lost.replyLost = true
			all = append(all, &lost)
		}
	}
	return all
}

// names tells apart the statements of one title by a number. It does not depend
// on their order, so that another run gives a statement the same name.
func names(statements []*statement) map[*statement]string {
	sorted := slices.Clone(statements)
	slices.SortFunc(sorted, func(a, b *statement) int {
		return cmp.Or(cmp.Compare(a.text, b.text), cmp.Compare(a.occurrence, b.occurrence))
	})
	names, counts := make(map[*statement]string), make(map[string]int)
	for _, s := range sorted {
		title := s.title()
		counts[title]++
		names[s] = title
		if n := counts[title]; n > 1 {
			names[s] = fmt.Sprintf("%s %d", title, n)
		}
	}
	return names
}

// reached returns what tells of each message of a call whether it is the one at
// which to cut.
func (p *point) reached() func(pgcut.Message) bool {
	var call history
	return func(message pgcut.Message) bool {
		s, reply := call.next(message)
		return s != nil && reply == p.replyLost && s.text == p.statement.text && s.occurrence == p.statement.occurrence
	}
}

// String is the name of the subtest.
func (p *point) String() string {
	if p.replyLost {
		return p.name + ", reply lost"
	}
	return p.name + ", not sent"
}

// event tells what happened.
func (p *point) event() string {
	which := fmt.Sprintf("statement %d of %d (%s)", p.index+1, p.total, p.name)
	if p.replyLost {
		return fmt.Sprintf("the server had done %s and the connection was reset before its reply", which)
	}
	return fmt.Sprintf("the connection was reset before the server got %s", which)
}
