package idempotency

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Final marks an error as the definitive answer of an operation: its writes are
// rolled back, the error is recorded in the same commit as the key, and every
// later call gets the same error as a *FinalError. The error, or one that it
// wraps, must be listed in Config.FinalErrors; otherwise nothing is recorded.
// Final(nil) is nil.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalMark{err}
}

type finalMark struct{ err error }

func (m *finalMark) Error() string { return m.err.Error() }
func (m *finalMark) Unwrap() error { return m.err }

// FinalError is the recorded final error of an operation.
type FinalError struct {
	Key Key
	// Code is the code of the error's kind in Config.FinalErrors.
	Code string
	// Err is the error as it was recorded: errors.As finds it with its fields.
	// It is nil where no kind with that code is listed any more.
	Err error
}

// Error returns the recorded error's text.
func (e *FinalError) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("idempotency: recorded final error %q, which is not listed in Config.FinalErrors (%v)", e.Code, e.Key)
	}
	return e.Err.Error()
}

// Unwrap returns Err.
func (e *FinalError) Unwrap() error { return e.Err }

// FinalKind is one sort of error that Final may record. FinalType and
// FinalValue make it.
type FinalKind struct {
	code string
	// encode returns false for an error of another kind.
	encode func(codec Codec, err error) (body []byte, matches bool, encodeErr error)
	decode func(codec Codec, body []byte) (error, error)
}

// FinalType lists errors of type E under a code. The codec records E's exported
// fields. E is what errors.As would look for, *InsufficientFundsError for one.
func FinalType[E error](code string) FinalKind {
	if reflect.TypeFor[E]().Kind() == reflect.Interface {
		return FinalKind{code: code} // could not be decoded into; NewClient refuses it
	}
	return FinalKind{
		code: code,
		encode: func(codec Codec, err error) ([]byte, bool, error) {
			var target E
			if !errors.As(err, &target) {
				return nil, false, nil
			}
			body, err := codec.Marshal(target)
			return body, true, err
		},
		decode: func(codec Codec, body []byte) (error, error) {
			var target E
			err := codec.Unmarshal(body, &target)
			return target, err
		},
	}
}

// FinalValue lists one error value, such as a sentinel, under a code.
func FinalValue(code string, sentinel error) FinalKind {
	kind := FinalKind{code: code}
	if sentinel == nil {
		return kind // NewClient refuses it
	}
	kind.encode = func(_ Codec, err error) ([]byte, bool, error) { return nil, errors.Is(err, sentinel), nil }
	kind.decode = func(Codec, []byte) (error, error) { return sentinel, nil }
	return kind
}

func (k FinalKind) validate(field string) error {
	switch {
	case k.encode == nil:
		return &ParamError{Field: field, Reason: "was not made by FinalType with a concrete type or by FinalValue with an error"}
	case k.code == "":
		return &ParamError{Field: field, Reason: "has an empty code"}
	case len(TypeErrorPrefix+k.code) > maxResponseTypeLength:
		return &ParamError{Field: field, Reason: fmt.Sprintf("has a code of over %d bytes", maxResponseTypeLength-len(TypeErrorPrefix))}
	case !isText(k.code):
		return &ParamError{Field: field, Reason: "has a code that is not valid UTF-8 without NUL"}
	}
	return nil
}

// finalResponse returns the response that records err, if err is marked Final
// and listed, and the error to fail with otherwise.
func (c *Config) finalResponse(key Key, err error) (*Response, error) {
	var mark *finalMark
	if !errors.As(err, &mark) {
		return nil, err
	}
	for _, kind := range c.FinalErrors {
		body, matches, encodeErr := kind.encode(c.Codec, mark.err)
		if encodeErr != nil {
			return nil, &KeyError{Key: key, Err: &codecError{"encode final error", kind.code, encodeErr}}
		}
		if matches {
			return &Response{Type: TypeErrorPrefix + kind.code, Body: body, RolledBack: true}, nil
		}
	}
	return nil, &KeyError{Key: key, Err: fmt.Errorf("%w: add a kind for %T; nothing was recorded: %w", ErrFinalUnlisted, mark.err, err)}
}

// finalError returns the error that the record holds, nil if it holds a result.
func (c *Config) finalError(record *Record) error {
	code, ok := strings.CutPrefix(record.Response.Type, TypeErrorPrefix)
	if !ok {
		return nil
	}
	for _, kind := range c.FinalErrors {
		if kind.code != code {
			continue
		}
		recorded, err := kind.decode(c.Codec, record.Response.Body)
		if err != nil {
			return &KeyError{Key: record.Key, Err: &codecError{"decode final error", code, err}}
		}
		return &FinalError{Key: record.Key, Code: code, Err: recorded}
	}
	return &FinalError{Key: record.Key, Code: code}
}
