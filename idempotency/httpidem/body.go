package httpidem

import (
	"errors"
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
)

// bodyStep is how much is reserved, and allocated, before it has come.
const bodyStep = 64 << 10

// read reads a body of at most limit bytes to its end. What the request says of its length
// is a hint alone: a middleware outside may have put another body in its place. release is
// called when the request has been answered: duplicates that wait hold their bodies too.
func (b *bodies) read(w http.ResponseWriter, r *http.Request, limit int64) (body []byte, release func(), err error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, func() {}, nil
	}
	if r.ContentLength > limit {
		return nil, nil, errBodyTooLarge
	}
	reserved := int64(0)
	free := func() { b.held.Add(-reserved) }
	defer func() {
		if release == nil { // an error, or a panic of what was put in the place of the body
			free()
		}
	}()
	reader := http.MaxBytesReader(w, r.Body, limit)
	read := make([]byte, 0)
	var next [1]byte
	for {
		// Where there is no room, first whether there is more.
		full := len(read) == cap(read)
		into := read[len(read):cap(read)]
		if full {
			into = next[:]
		}
		n, err := reader.Read(into)
		if full && n > 0 {
			size := max(2*int64(cap(read)), bodyStep)
			if r.ContentLength > int64(cap(read)) {
				// All of it, once a step has come.
				if size = r.ContentLength; cap(read) == 0 {
					size = min(size, bodyStep)
				}
			}
			size = min(size, limit)
			if b.held.Add(size-reserved) > b.most {
				b.held.Add(reserved - size)
				return nil, nil, errTooManyBodies
			}
			reserved = size
			read = append(append(make([]byte, 0, size), read...), next[0])
		} else {
			read = read[:len(read)+n]
		}
		switch {
		case errors.Is(err, io.EOF):
			return read, free, nil
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
	return err
}
