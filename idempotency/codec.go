package idempotency

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Codec turns results into bytes and back.
type Codec interface {
	// Name goes before the type's name in Response.Type, as in "json:pkg.T". It is
	// UTF-8 without NUL and colon, not empty, shorter than 255 bytes, and none of
	// "error", "none" and "bytes", which have a meaning of their own there.
	Name() string
	Marshal(value any) ([]byte, error)
	// Unmarshal decodes data into the value that target points to.
	Unmarshal(data []byte, target any) error
}

type jsonCodec struct{}

func (jsonCodec) Name() string                            { return "json" }
func (jsonCodec) Marshal(value any) ([]byte, error)       { return json.Marshal(value) }
func (jsonCodec) Unmarshal(data []byte, target any) error { return json.Unmarshal(data, target) }

// typeSeparator stands between the codec's name, or "error", and what follows it.
const typeSeparator = ":"

// validateCodec refuses a name that could be taken for another's, or for no
// codec's.
func validateCodec(codec Codec) error {
	var reason string
	switch name := codec.Name(); {
	case name == "":
		reason = "has an empty name"
	case len(name+typeSeparator) >= maxResponseTypeLength:
		reason = fmt.Sprintf("has a name of over %d bytes", maxResponseTypeLength-len(typeSeparator)-1)
	case !isText(name):
		reason = "has a name that is not valid UTF-8 without NUL"
	case strings.Contains(name, typeSeparator):
		reason = "has a name with a colon, which ends the name in Response.Type"
	case name+typeSeparator == TypeErrorPrefix, name == TypeNone, name == TypeBytes:
		reason = `has a name that means something else in Response.Type: "error", "none" or "bytes"`
	default:
		return nil
	}
	return &ParamError{Field: "Config.Codec", Reason: reason}
}

// None is the result of an operation that returns nothing. See NoResult.
type None struct{}

// resultCodec encodes and decodes results of type T.
type resultCodec[T any] struct {
	codec    Codec
	typeName string
}

func newResultCodec[T any](codec Codec) (resultCodec[T], error) {
	var zero T
	switch any(zero).(type) {
	case None:
		return resultCodec[T]{codec, TypeNone}, nil
	case []byte:
		return resultCodec[T]{codec, TypeBytes}, nil
	case json.RawMessage:
		return resultCodec[T]{codec, "json"}, nil
	}
	goType := reflect.TypeFor[T]()
	switch goType.Kind() {
	case reflect.Interface, reflect.Chan, reflect.Func, reflect.UnsafePointer:
		return resultCodec[T]{}, &ParamError{
			Field:  "T",
			Reason: fmt.Sprintf("is %s: a recorded result could not be decoded into it; use a concrete type", goType),
		}
	}
	name := resultTypeName(goType)
	typeName := codec.Name() + typeSeparator + name
	switch {
	case len(typeName) > maxResponseTypeLength:
		return resultCodec[T]{}, &ParamError{Field: "T", Reason: "has a name of over 255 bytes, with the codec's; give it a shorter one by a method ResultType() string"}
	case name == "" || !isText(name):
		return resultCodec[T]{}, &ParamError{Field: "T", Reason: "has a method ResultType whose result is empty or not valid UTF-8 without NUL"}
	}
	return resultCodec[T]{codec, typeName}, nil
}

// resultTypeName is the name that a type gives itself, or Go's name for it.
func resultTypeName(goType reflect.Type) string {
	// A method with a pointer receiver is found only on a pointer, and a nil
	// pointer could make the method panic.
	base := goType
	if base.Kind() == reflect.Pointer {
		base = base.Elem()
	}
	if named, ok := reflect.New(base).Interface().(interface{ ResultType() string }); ok {
		return named.ResultType()
	}
	return goType.String()
}

func (c resultCodec[T]) encode(value T) (*Response, error) {
	switch value := any(value).(type) {
	case None:
		return &Response{Type: c.typeName}, nil
	case []byte:
		return &Response{Type: c.typeName, Body: value}, nil
	case json.RawMessage:
		return &Response{Type: c.typeName, Body: value}, nil
	}
	body, err := c.codec.Marshal(value)
	if err != nil {
		return nil, &codecError{"encode result as", c.typeName, err}
	}
	return &Response{Type: c.typeName, Body: body}, nil
}

func (c resultCodec[T]) decode(key Key, response *Response) (value T, err error) {
	if response.Type != c.typeName {
		return value, &ResultTypeError{Key: key, Recorded: response.Type, Wanted: c.typeName}
	}
	switch target := any(&value).(type) {
	case *None:
		return value, nil
	case *[]byte:
		// The record keeps its own copy: the caller may write to its value.
		*target = bytes.Clone(response.Body)
		return value, nil
	case *json.RawMessage:
		*target = bytes.Clone(response.Body)
		return value, nil
	}
	if err := c.codec.Unmarshal(response.Body, &value); err != nil {
		return value, &KeyError{Key: key, Err: &codecError{"decode result as", c.typeName, err}}
	}
	return value, nil
}

// codecError prints the type of its cause only: codecs quote the values that
// they fail on.
type codecError struct {
	doing    string
	typeName string
	cause    error
}

func (e *codecError) Error() string {
	return fmt.Sprintf("idempotency: %s %q: %T: unwrap it for more, which may quote the value", e.doing, e.typeName, e.cause)
}

func (e *codecError) Unwrap() error { return e.cause }
