package mongostore

import (
	"errors"
	"strings"
	"testing"

	"go.mongodb.org/mongo-driver/v2/mongo"

	"github.com/samecommit/samecommit/idempotency"
)

// The text of an error has nothing of what the server says, which may have the key.
func TestErrorsKeepTheKey(t *testing.T) {
	t.Parallel()
	const secret = "{_id: {scope: 'tenant', id: 'secret'}}"
	key := idempotency.Key{Scope: "tenant", ID: "secret"}
	for name, c := range map[string]struct {
		err  error
		want error
		text string
	}{
		"not authorized":  {mongo.CommandError{Code: 13, Name: "Unauthorized", Message: "command " + secret}, mongo.CommandError{Code: 13, Name: "Unauthorized", Message: "command " + secret}, "[13] Unauthorized"},
		"a write":         {mongo.WriteException{WriteErrors: mongo.WriteErrors{{Code: 121, Message: secret}}}, nil, "[121]"},
		"a write concern": {mongo.WriteException{WriteConcernError: &mongo.WriteConcernError{Code: 64, Message: secret}}, nil, "[64]"},
		"no primary":      {mongo.CommandError{Code: 10107, Name: "NotWritablePrimary", Message: secret}, idempotency.ErrReadOnly, "NotWritablePrimary"},
		"stepped down":    {mongo.WriteException{WriteErrors: mongo.WriteErrors{{Code: 189, Message: secret}}}, idempotency.ErrReadOnly, "[189]"},
	} {
		err := explain(key, "begin", c.err)
		if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "begin") {
			t.Errorf("%s: the text is %q; want %q in it and nothing of the server's", name, err, c.text)
		}
		if _, ok := errors.AsType[mongo.ServerError](err); !ok || errors.Is(err, idempotency.ErrUnavailable) {
			t.Errorf("%s: %v; want the server's error inside", name, err)
		}
		if errors.Is(c.want, idempotency.ErrReadOnly) != errors.Is(err, idempotency.ErrReadOnly) {
			t.Errorf("%s: %v; want ErrReadOnly: %t", name, err, errors.Is(c.want, idempotency.ErrReadOnly))
		}
	}
}
