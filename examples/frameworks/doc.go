// Package frameworks mounts one handler under the middleware of package httpidem, in chi,
// gin, echo and fiber. Each file is to be copied. It is a module of its own, so that nobody
// who runs another example downloads four frameworks.
package frameworks

import (
	"context"
	"errors"
)

// Charge books a charge through httpidem.Tx of the context, and returns its number. It
// knows nothing of HTTP.
type Charge func(ctx context.Context, account string, cents int64) (id int64, err error)

// ErrDeclined is a Charge's answer to this request, for good: 402. Other errors are a 500.
var ErrDeclined = errors.New("the card was declined")

// request is the body of POST /accounts/{account}/charges, and receipt that of its 201.
type (
	request struct {
		Cents int64 `json:"cents"`
	}
	receipt struct {
		Charge int64 `json:"charge"`
	}
)
