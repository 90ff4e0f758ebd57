package idempotencytest

import "github.com/samecommit/samecommit/internal/pgcut"

// statement is one that a call sent.
type statement struct {
	// sent and reply number the messages that run it and that tell its end.
	// There is no reply where it was skipped after an error.
	sent, reply int
	commit      bool
}

// statements finds those in messages. Replies come in the order of requests on a
// connection; where connections are used at the same time, a reply may be taken
// for that to another statement.
func statements(messages []pgcut.Message) []*statement {
	var found, pending []*statement
	var last *statement
	for _, message := range messages {
		switch {
		case message.From == pgcut.Frontend && (message.Type == 'E' || message.Type == 'Q'):
			sent := &statement{sent: message.Number, commit: message.Commit}
			found, pending = append(found, sent), append(pending, sent)
			if message.Type == 'Q' {
				pending = append(pending, nil) // which a Sync ends otherwise
			}
		case message.From == pgcut.Frontend && message.Type == 'S':
			pending = append(pending, nil)
		case message.From == pgcut.Frontend:
		case message.Type == 'Z':
			for len(pending) > 0 {
				end := pending[0] == nil
				pending = pending[1:]
				if end {
					break
				}
			}
		case message.Type == 'C' || message.Type == 'I' || message.Type == 's' || message.Type == 'E':
			if len(pending) > 0 && pending[0] != nil {
				last, pending = pending[0], pending[1:]
				last.reply = message.Number
			}
			// One Query can hold several statements, and so have several replies.
			if last != nil && message.Commit {
				last.commit = true
			}
		}
	}
	return found
}
