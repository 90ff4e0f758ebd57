// Package trial sends orders whose process is killed, or whose provider fails, and judges
// what became of them.
package trial

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/samecommit/samecommit/examples/internal/child"
	"github.com/samecommit/samecommit/examples/internal/provider"
)

const (
	// mostProcesses is how often an order is sent at most until it has an answer.
	mostProcesses = 5
	sendLimit     = time.Minute
)

// Trial is one order and what went wrong with it: a kill, or the provider.
type Trial struct {
	Order string         `json:"order"`
	Kill  child.Point    `json:"kill,omitempty"`
	Fault provider.Fault `json:"fault,omitempty"`

	// Processes is how many were started for it.
	Processes int  `json:"processes"`
	Killed    bool `json:"killed"`
	// Counts are what is in the books for this order, by the name of the book.
	Counts map[string]int `json:"counts"`
	// Told is what whoever sent it was told.
	Told  string `json:"told"`
	Wrong bool   `json:"wrong"`
}

// All returns a trial for each of the points, and for each fault of a provider.
func All(points ...child.Point) (all []*Trial) {
	for _, kill := range points {
		all = append(all, &Trial{Kill: kill})
	}
	for _, fault := range provider.Faults() {
		all = append(all, &Trial{Fault: fault})
	}
	for i, t := range all {
		t.Order = fmt.Sprintf("order-%d", 1001+i)
	}
	return all
}

// Send sends the order's task until a process says what became of it. The first process
// of all is killed at the trial's point.
func Send[Task any, T comparable](ctx context.Context, t *Trial, task Task, stderr io.Writer) (Answer[T], error) {
	ctx, cancel := context.WithTimeout(ctx, sendLimit)
	defer cancel()
	last := Answer[T]{Err: "nothing"}
	for range mostProcesses {
		var killAt child.Point
		if t.Processes == 0 {
			killAt = t.Kill
		}
		t.Processes++
		said, killed, err := child.Run[Task, Answer[T]](ctx, task, killAt, stderr)
		switch {
		case err != nil:
			return said, fmt.Errorf("%s: %w", t.Order, err)
		case killed:
			t.Killed = true
			continue
		case said.settled():
			return said, nil
		}
		last = said
	}
	return Answer[T]{Err: fmt.Sprintf("no answer in %d processes, the last of which said: %s", mostProcesses, last.Err)}, nil
}

// Judge notes what is in the books, and what was said last: told is the value in words,
// and agrees says that it is the one in the books. The order went well if each book has it
// once, or if the provider declined it and no book has it.
func Judge[T comparable](t *Trial, said Answer[T], told string, agrees bool, counts map[string]int) {
	want, right := 1, said.Err == "" && agrees
	if t.Fault == provider.Declines {
		want, right = 0, said.Declined
	}
	if said.Err != "" {
		told = said.Err
	}
	t.Counts, t.Told = counts, told
	t.Wrong = !right || t.Killed != (t.Kill != "")
	for _, count := range counts {
		t.Wrong = t.Wrong || count != want
	}
}
