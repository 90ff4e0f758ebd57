package idempotency

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"strings"
)

// Final marks an error as the definitive answer of an operation: its writes are
// rolled back, the error is recorded in the same commit as the key, and every
// later call gets the same error as a *FinalError. The error, or one that it
// wraps, must be listed in Config.FinalErrors; otherwise nothing is recorded and
// the call fails with ErrFinalUnlisted. Final(nil) is nil.
//
// The function may wrap what Final returns. Beside another error, by errors.Join
// or a second %w, it counts only if that one is final too, and the first of them
// is recorded: else the other may be why the operation failed, and what the
// function returned is an error like any other. Final around a join says that
// all of it is final.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalMark{err}
}

type finalMark struct{ err error }

func (m *finalMark) Error() string { return m.err.Error() }
func (m *finalMark) Unwrap() error { return m.err }

// finalMarkOf returns the mark that makes err final, nil where there is none or
// an error beside it is not final.
func finalMarkOf(err error) *finalMark {
	switch err := err.(type) { //nolint:errorlint // It walks the tree itself.
	case *finalMark:
		return err
	case interface{ Unwrap() error }:
		return finalMarkOf(err.Unwrap())
	case interface{ Unwrap() []error }:
		var first *finalMark
		for _, branch := range err.Unwrap() {
			mark := finalMarkOf(branch)
			if mark == nil {
				return nil
			}
			first = cmp.Or(first, mark)
		}
		return first
	}
	return nil
}

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
	// find returns err, or one that it wraps, if it is of this kind, else nil.
	find   func(err error) error
	encode func(codec Codec, found error) ([]byte, error)
	decode func(codec Codec, body []byte) (error, error)
}

// FinalType lists errors of type E under a code. E is what errors.As would look
// for, *InsufficientFundsError for one. The codec records it: encoding/json the
// exported fields. An error that has another text when it has been read back is
// refused, and nothing is recorded.
func FinalType[E error](code string) FinalKind {
	if reflect.TypeFor[E]().Kind() == reflect.Interface {
		return FinalKind{code: code} // could not be decoded into; NewClient refuses it
	}
	return FinalKind{
		code: code,
		find: func(err error) error {
			var target E
			if !errors.As(err, &target) {
				return nil
			}
			return target
		},
		encode: func(codec Codec, found error) ([]byte, error) { return codec.Marshal(found) },
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
	kind.find = func(err error) error {
		if !errors.Is(err, sentinel) {
			return nil
		}
		return sentinel
	}
	kind.encode = func(Codec, error) ([]byte, error) { return nil, nil }
	kind.decode = func(Codec, []byte) (error, error) { return sentinel, nil }
	return kind
}

func (k FinalKind) validate(field string) error {
	switch {
	case k.find == nil:
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

// finalAnswer returns the answer that records err, if err is marked Final and
// listed, and the error to fail with otherwise.
func (s *settings) finalAnswer(key Key, err error) (Answer, error) {
	mark := finalMarkOf(err)
	if mark == nil {
		return Answer{}, err
	}
	for _, kind := range s.FinalErrors {
		found := kind.find(mark.err)
		if found == nil {
			continue
		}
		body, err := kind.encode(s.Codec, found)
		if err != nil {
			return Answer{}, &KeyError{Key: key, Err: &codecError{"encode final error", kind.code, err}}
		}
		recorded, err := kind.decode(s.Codec, body)
		if err != nil {
			return Answer{}, &KeyError{Key: key, Err: &codecError{"decode final error", kind.code, err}}
		}
		// Sprint survives a method that panics, as on a nil pointer.
		if fmt.Sprint(recorded) != fmt.Sprint(found) {
			return Answer{}, &KeyError{Key: key, Err: fmt.Errorf("idempotency: final error %q: %T changes its text when the codec writes and reads it, so nothing was recorded: export the fields that its text is made of, or give it the codec's methods", kind.code, found)}
		}
		return Answer{Response: &Response{Type: TypeErrorPrefix + kind.code, Body: body}, UndoWrites: true}, nil
	}
	// It does not wrap the business error: who finds that answers the client as
	// if it were recorded, and every retry would run again.
	return Answer{}, &KeyError{Key: key, Err: fmt.Errorf("%w: nothing was recorded of the %T: add %s", ErrFinalUnlisted, mark.err, listingOf(mark.err))}
}

// listingOf returns what to add to Config.FinalErrors for err.
func listingOf(err error) string {
	if listed := ownType(err); listed != nil {
		return fmt.Sprintf(`idempotency.FinalType[%T]("code")`, listed)
	}
	return `idempotency.FinalValue("code", err), err being that value or one that it wraps`
}

// ownType returns the first error in the tree of err that can be told by its
// type: those of packages errors and fmt are told by their value.
func ownType(err error) error {
	if mark, ok := err.(*finalMark); ok { //nolint:errorlint // It walks the tree itself.
		return ownType(mark.err)
	}
	goType := reflect.TypeOf(err)
	if goType.Kind() == reflect.Pointer {
		goType = goType.Elem()
	}
	if pkg := goType.PkgPath(); pkg != "errors" && pkg != "fmt" {
		return err
	}
	var branches []error
	switch err := err.(type) { //nolint:errorlint // It walks the tree itself.
	case interface{ Unwrap() error }:
		branches = []error{err.Unwrap()}
	case interface{ Unwrap() []error }:
		branches = err.Unwrap()
	}
	for _, branch := range branches {
		if branch == nil {
			continue
		}
		if found := ownType(branch); found != nil {
			return found
		}
	}
	return nil
}

// finalError returns the error that the record holds, nil if it holds a result.
func (s *settings) finalError(record *Record) error {
	code, ok := strings.CutPrefix(record.Response.Type, TypeErrorPrefix)
	if !ok {
		return nil
	}
	for _, kind := range s.FinalErrors {
		if kind.code != code {
			continue
		}
		recorded, err := kind.decode(s.Codec, record.Response.Body)
		if err != nil {
			return &KeyError{Key: record.Key, Err: &codecError{"decode final error", code, err}}
		}
		return &FinalError{Key: record.Key, Code: code, Err: recorded}
	}
	return &FinalError{Key: record.Key, Code: code}
}
