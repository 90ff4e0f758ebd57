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
		text string
	}{
		"not authorized": {mongo.CommandError{Code: 13, Name: "Unauthorized", Message: "command " + secret}, "[13] Unauthorized"},
		"a write":        {mongo.WriteException{WriteErrors: mongo.WriteErrors{{Code: 121, Message: secret}}}, "[121]"},
		"no majority":    {mongo.WriteException{WriteConcernError: &mongo.WriteConcernError{Code: 64, Message: secret}}, "[64]"},
		"stepped down":   {mongo.CommandError{Code: 189, Name: "PrimarySteppedDown", Message: secret}, "PrimarySteppedDown"},
		"no primary":     {mongo.CommandError{Code: 10107, Name: "NotWritablePrimary", Message: secret}, "NotWritablePrimary"},
	} {
		err := explain(key, "begin", c.err)
		if strings.Contains(err.Error(), "secret") || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), "begin") {
			t.Errorf("%s: the text is %q; want %q in it and nothing of the server's", name, err, c.text)
		}
		if _, ok := errors.AsType[mongo.ServerError](err); !ok {
			t.Errorf("%s: %v; want the server's error inside", name, err)
		}
		// The write may have happened, and been undone or not.
		if errors.Is(err, idempotency.ErrUnavailable) || errors.Is(err, idempotency.ErrReadOnly) {
			t.Errorf("%s: %v; it says that nothing was done", name, err)
		}
	}
	network := explain(key, "begin", mongo.CommandError{Message: "connection reset", Labels: []string{"NetworkError"}})
	if !strings.Contains(network.Error(), "connection reset") {
		t.Errorf("%v; want what the network says", network)
	}
}
