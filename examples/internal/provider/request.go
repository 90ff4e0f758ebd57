package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
)

// keyHeader is the header of an idempotency key.
const keyHeader = "Idempotency-Key"

// ErrDeclined is what a provider answers that will not do it, today or tomorrow.
var ErrDeclined = errors.New("the provider has declined")

// Request is what a provider is asked for.
type Request struct {
	// Order is whoever asks's name of it.
	Order string `json:"order"`
	// Account is the card to charge, or the phone to top up.
	Account string `json:"account"`
	Cents   int    `json:"cents"`
}

// Receipt is the answer to a request.
type Receipt struct {
	ID string `json:"id"`
}

// Send asks the provider at a URL. Without a key, which is "", it does it each time that
// it is asked. After an error other than ErrDeclined nobody here knows whether it has.
func (r Request) Send(ctx context.Context, url, key string) (receipt Receipt, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return receipt, err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return receipt, err
	}
	// net/http sends a request again by itself where a connection that it had kept
	// breaks and the request has this header.
	if key != "" {
		post.Header.Set(keyHeader, key)
	}
	reply, err := http.DefaultClient.Do(post)
	if err != nil {
		return receipt, fmt.Errorf("ask the provider: %w", err)
	}
	defer func() { _ = reply.Body.Close() }()
	switch reply.StatusCode {
	case http.StatusOK:
		if err := json.NewDecoder(reply.Body).Decode(&receipt); err != nil {
			return receipt, fmt.Errorf("read the provider's receipt: %w", err)
		}
		return receipt, nil
	case http.StatusPaymentRequired:
		return receipt, ErrDeclined
	default:
		return receipt, fmt.Errorf("ask the provider: %s", reply.Status)
	}
}
