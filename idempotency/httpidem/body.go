package httpidem

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
)

// bodies bounds the bytes of all request bodies that a middleware holds.
type bodies struct {
	most int64
	held atomic.Int64
}

var (
	errTooManyBodies = errors.New("httpidem: the requests that are being answered hold Config.MaxBodies already")
	errBodyTooLarge  = errors.New("httpidem: the body is larger than Config.MaxBody, or than a limit outside")
	errBodyTimeout   = errors.New("httpidem: the body did not come within the server's read deadline")
	errBodyCut       = errors.New("httpidem: the body could not be read to its end")
)

// share is what one request holds of bodies.
type share struct {
	of   *bodies
	size int64
}

// grow reports whether there is room for so much.
func (s *share) grow(size int64) bool {
	if s.of.held.Add(size-s.size) > s.of.most {
		s.of.held.Add(s.size - size)
		return false
	}
	s.size = size
	return true
}

func (s *share) release() { s.of.held.Add(-s.size) }

// bodyStep is how much is reserved, and allocated, once the first byte has come.
const bodyStep = 64 << 10

// nextSize is how much to hold where size bytes are full: all that the request says it
// has, once a step of that has come, or twice as much.
func nextSize(size, declared, limit int64) int64 {
	next := max(2*size, bodyStep)
	switch {
	case declared > size && size == 0:
		next = min(declared, bodyStep)
	case declared > size:
		next = declared
	}
	return min(next, limit)
}

// read reads a body of at most limit bytes to its end. What the request says of its length
// is a hint alone: a middleware outside may have put another body in its place. release is
// called when the request has been answered: duplicates that wait hold their bodies too.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, release func(), err error) {
	if r.ContentLength > limit {
		return nil, nil, errBodyTooLarge
	}
	held := &share{of: b}
	defer func() {
		if release == nil { // an error, or a panic of what was put in the place of the body
			held.release()
		}
	}()
	reader := http.MaxBytesReader(w, r.Body, limit)
	var next [1]byte
	for {
		// Where there is no room, first whether there is more.
		full := len(body) == cap(body)
		into := body[len(body):cap(body)]
		if full {
			into = next[:]
		}
		n, err := reader.Read(into)
		if full && n > 0 {
			size := nextSize(int64(cap(body)), r.ContentLength, limit)
			if !held.grow(size) {
				return nil, nil, errTooManyBodies
			}
			body = append(append(make([]byte, 0, size), body...), next[0])
		} else {
			body = body[:len(body)+n]
		}
		switch {
		case errors.Is(err, io.EOF):
			return body, held.release, nil
		case err != nil:
			return nil, nil, explainBody(err)
		}
	}
}

func explainBody(err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return errBodyTooLarge
	}
	if timeout, ok := errors.AsType[net.Error](err); errors.Is(err, os.ErrDeadlineExceeded) || ok && timeout.Timeout() {
		return errBodyTimeout
	}
	return fmt.Errorf("%w: %w", errBodyCut, err)
}
