package idempotency_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/memstore"
)

// Whatever of ours somebody logs, as it is or inside something of their own, the
// log has no scope, no id, no fingerprint, no body and no secret of a config.
func TestLogsHoldNoSecret(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "SECRET-scope", ID: "SECRET-id"}
	fingerprint, err := idempotency.ParseFingerprint([]byte("\x01SECRET-digest"))
	if err != nil {
		t.Fatal(err)
	}
	response := &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte("SECRET-body")}
	params := idempotency.Params{Key: key, Fingerprint: fingerprint}
	config := &idempotency.Config{KeySecret: []byte("SECRET-of-the-config")}
	client, store := newClient(t, config)
	bare, _ := newClient(t, nil) // whose keys are the caller's own
	result, err := idempotency.Do(t.Context(), bare, params, func(context.Context, *memstore.Tx) ([]byte, error) { return response.Body, nil })
	if err != nil {
		t.Fatal(err)
	}
	record := result.Record
	result.Value = []byte("the caller's own")
	other := params
	other.Key.ID += "-other"
	batch, err := client.WithTx(store.NewTx()).BeginMany(t.Context(), []idempotency.Params{other, other})
	if err != nil {
		t.Fatal(err)
	}
	batch.Items[0].Response, batch.Items[1].Record = response, record
	batch.Items[0].Key, batch.Items[1].Key = key, key
	claim := &idempotency.Claim{Key: key, ID: idempotency.NewClaimID()}
	outcome := &idempotency.Outcome{State: idempotency.New, Claim: claim, Record: record}
	begin := &idempotency.BeginParams{Key: key, Fingerprint: fingerprint}
	keyErr := &idempotency.KeyError{Key: key, Err: idempotency.ErrClaimLost}

	holders := []any{
		key, &key, fingerprint, &fingerprint, params, &params, begin, *begin,
		record, *record, claim, *claim, outcome, *outcome, result, &result,
		batch, *batch, batch.Items[0], *batch.Items[0], batch.Items[1], *batch.Items[1], batch.Items,
		keyErr, *keyErr, &idempotency.InProgressError{Key: key, RetryAfter: 1},
		&idempotency.ResultTypeError{Key: key}, &idempotency.FinalError{Key: key},
		idempotency.BeginResult{Outcome: outcome, Err: keyErr},
		idempotency.TraceStartData{Key: key},
		idempotency.TraceEndData{Err: keyErr},
		config, *config, config.KeySecret, client,
		map[idempotency.Key]int{key: 1},
	}
	alone := []any{response, *response} // whose body encoding/json has to keep
	var log bytes.Buffer
	loggers := []*slog.Logger{slog.New(slog.NewJSONHandler(&log, nil)), slog.New(slog.NewTextHandler(&log, nil))}
	check := func(how string, holder any, text string) {
		t.Helper()
		for _, secret := range []string{
			"SECRET", hex.EncodeToString([]byte("SECRET")),
			base64.StdEncoding.EncodeToString(fingerprint.Bytes())[:8], base64.StdEncoding.EncodeToString(response.Body)[:8],
			"83 69 67 82 69 84", "83,69,67,82,69,84", // SECRET as numbers
		} {
			if strings.Contains(text, secret) {
				t.Errorf("%s of %T has %q:\n%s", how, holder, secret, text)
			}
		}
	}
	for i, holder := range append(alone, holders...) {
		inside := []any{struct{ Value any }{holder}, map[string]any{"value": holder}, []any{holder}}
		for _, verb := range []string{"%v", "%+v", "%#v"} {
			check(verb, holder, fmt.Sprintf(verb, holder))
			for _, outer := range inside {
				check(verb+" inside", holder, fmt.Sprintf(verb, outer))
			}
		}
		for _, logger := range loggers {
			log.Reset()
			logger.Info("test", "value", holder, slog.Group("group", "value", holder))
			check("slog", holder, log.String())
			if i < len(alone) {
				continue
			}
			for _, outer := range inside {
				log.Reset()
				logger.Info("test", "value", outer)
				check("slog inside", holder, log.String())
			}
		}
		if i < len(alone) || holder == any(client) {
			continue
		}
		if text, err := json.Marshal(holder); err == nil {
			check("JSON", holder, string(text))
		}
	}
}

// What fmt does not ask a type for is a limit that Key's documentation states. A
// way to lift it would be news.
func TestLimitOfHashes(t *testing.T) {
	t.Parallel()
	hidden := struct{ key idempotency.Key }{idempotency.Key{Scope: "scope", ID: "id"}}
	behind := struct{ Params *idempotency.Params }{&idempotency.Params{Key: hidden.key}}
	for verb, holder := range map[string]any{"%v": hidden, "%s": behind} {
		if text := fmt.Sprintf(verb, holder); !strings.Contains(text, "{scope id}") {
			t.Errorf("%s of %T prints %s: it does hide the key", verb, holder, text)
		}
	}
}

// A hash says which key it was and does not give it back.
func TestKeyIsNotReadFromItsHash(t *testing.T) {
	t.Parallel()
	key := idempotency.Key{Scope: "tenant-7/charge", ID: "3f1c"}
	text, err := json.Marshal(map[idempotency.Key]idempotency.Claim{key: {Key: key}})
	if err != nil || strings.Count(string(text), `"`+key.String()+`"`) != 2 {
		t.Errorf("JSON of a key is %s, %v; want its hash, also as the key of a map", text, err)
	}
	var read idempotency.Key
	var readMap map[idempotency.Key]int
	var readClaim idempotency.Claim
	for _, err := range []error{
		json.Unmarshal([]byte(`"`+key.String()+`"`), &read),
		json.Unmarshal([]byte(`{"`+key.String()+`":1}`), &readMap),
		json.Unmarshal([]byte(`{"Key":"`+key.String()+`"}`), &readClaim),
		read.UnmarshalText([]byte(key.String())),
		read.UnmarshalText(nil),
	} {
		if !errors.Is(err, idempotency.ErrInvalidParams) || !strings.Contains(err.Error(), "store Scope and ID") || strings.Contains(err.Error(), key.String()) {
			t.Errorf("%v; want a *ParamError that says what to store", err)
		}
	}
	if read != (idempotency.Key{}) || len(readMap) != 0 {
		t.Errorf("%v, %v: something was read", read, readMap)
	}
}
