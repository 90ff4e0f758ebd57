package idempotencytest

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/samecommit/samecommit/internal/pgcut"
)

// statement is one that a call sent.
type statement struct {
	// text has no values: they differ from call to call.
	text string
	// occurrence counts the call's statements of this text from 1.
	occurrence int
	replied    bool
	commit     bool
}

// history knows the statements of a call by its messages. They are told apart by
// text and not by place, since what goroutines send comes in any order.
type history struct {
	statements []*statement
	counts     map[string]int // by text
	conns      map[int]*requests
}

// requests are those of one connection. Replies come in their order.
type requests struct {
	// pending are the statements without a reply; nil ends a request.
	pending []*statement
	last    *statement
}

// next takes the next message. It returns the statement that the message runs,
// or the one whose end it tells, and nil for all others.
func (h *history) next(message pgcut.Message) (s *statement, reply bool) {
	if message.Starting {
		return nil, false
	}
	if h.conns == nil {
		h.counts, h.conns = make(map[string]int), make(map[int]*requests)
	}
	r := h.conns[message.Conn]
	if r == nil {
		r = &requests{}
		h.conns[message.Conn] = r
	}
	switch {
	case message.From == pgcut.Frontend && (message.Type == 'E' || message.Type == 'Q'):
		text := withoutValues(message.Statement)
		h.counts[text]++
		s = &statement{text: text, occurrence: h.counts[text], commit: message.Commit}
		h.statements = append(h.statements, s)
		r.pending = append(r.pending, s)
		if message.Type == 'Q' {
			r.pending = append(r.pending, nil) // which a Sync ends otherwise
		}
		return s, false
	case message.From == pgcut.Frontend && message.Type == 'S':
		r.pending = append(r.pending, nil)
	case message.From == pgcut.Frontend:
	case message.Type == 'Z':
		for len(r.pending) > 0 {
			end := r.pending[0] == nil
			r.pending = r.pending[1:]
			if end {
				break
			}
		}
	case message.Type == 'C' || message.Type == 'I' || message.Type == 's' || message.Type == 'E':
		if len(r.pending) > 0 && r.pending[0] != nil {
			s, r.last, r.pending = r.pending[0], r.pending[0], r.pending[1:]
			s.replied = true
		}
		// One Query can hold several statements, and so have several replies.
		if r.last != nil && message.Commit {
			r.last.commit = true
		}
		return s, s != nil
	}
	return nil, false
}

func statements(messages []pgcut.Message) []*statement {
	var h history
	for _, message := range messages {
		h.next(message)
	}
	return h.statements
}

var (
	values   = regexp.MustCompile(`'(?:[^']|'')*'|-?\b\d[\d.]*\b`)
	comments = regexp.MustCompile(`(?s)--[^\n]*|/\*.*?\*/`)
	named    = regexp.MustCompile(`^-- name: (\w+)`)
)

// withoutValues returns text without its literals: the simple protocol puts the
// arguments there.
func withoutValues(text string) string { return values.ReplaceAllString(text, "?") }

const titleLength = 50

// title is a name of the statement: the one that sqlc puts before it, else its
// first words. It has letters, digits, underscores and spaces only, which mean
// nothing to -run, and no word of digits only. Several statements can have one.
func (s *statement) title() string {
	title := ""
	if found := named.FindStringSubmatch(s.text); found != nil {
		title = found[1]
	}
	if title == "" {
		title = firstWords(comments.ReplaceAllString(s.text, " "))
	}
	if title == "" {
		title = firstWords(s.text)
	}
	switch {
	case strings.EqualFold(title, "commit"):
		return "COMMIT"
	case s.commit:
		return strings.TrimSpace(title + " with COMMIT")
	case title == "":
		return "empty statement"
	}
	return title
}

func firstWords(text string) string {
	var words []string
	length := 0
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
		if strings.TrimFunc(word, unicode.IsDigit) == "" {
			continue
		}
		if length += len(word) + 1; length > titleLength && len(words) > 0 {
			break
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}
