package mongostore_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/mongostore"
)

const (
	// urlVariable names the server, which make test finds or starts.
	urlVariable = "SAMECOMMIT_MONGODB_URL"
	// requiredVariable, which says how to get one, lets tests fail that have none.
	requiredVariable = "SAMECOMMIT_MONGODB"
)

func connect(t *testing.T, change func(*options.ClientOptions)) *mongo.Client {
	t.Helper()
	url := os.Getenv(urlVariable)
	if url == "" {
		const advice = urlVariable + " is not set: run this as make test does, under go run ./tests/withservers"
		if os.Getenv(requiredVariable) != "" {
			t.Fatal(advice)
		}
		t.Skip(advice)
	}
	opts := options.Client().ApplyURI(url)
	if change != nil {
		change(opts)
	}
	client, err := mongo.Connect(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Disconnect(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return client
}

// realServer skips a test of what the test double has not.
func realServer(t *testing.T, client *mongo.Client, what string) {
	t.Helper()
	info, err := client.Database("admin").RunCommand(t.Context(), bson.D{{Key: "buildInfo", Value: 1}}).Raw()
	if err != nil {
		t.Fatal(err)
	}
	if isDouble(info) {
		t.Skip("the server is FerretDB 1, a test double, which has no " + what + ": run this with MongoDB")
	}
}

func isDouble(buildInfo bson.Raw) bool {
	return buildInfo.Lookup("ferretdb").Type != 0 || buildInfo.Lookup("ferretdbVersion").Type != 0
}

// newCollection returns a collection of the test's own.
func newCollection(t *testing.T, client *mongo.Client) *mongo.Collection {
	t.Helper()
	collection := client.Database("samecommit_test").Collection(rand.Text())
	t.Cleanup(func() {
		if err := collection.Drop(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return collection
}

func newStore(t *testing.T, collection *mongo.Collection) *mongostore.Store {
	t.Helper()
	store, err := mongostore.New(collection)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func params(id string) *idempotency.BeginParams {
	return &idempotency.BeginParams{
		Key: idempotency.Key{Scope: "scope of the test", ID: id}, Fingerprint: idempotency.FingerprintOf(id), TTL: time.Hour, Lease: time.Hour,
	}
}

func idOf(key idempotency.Key) bson.D {
	return bson.D{{Key: "_id", Value: bson.D{{Key: "scope", Value: key.Scope}, {Key: "id", Value: key.ID}}}}
}

func begin(t *testing.T, store *mongostore.Store, params *idempotency.BeginParams) *idempotency.Claim {
	t.Helper()
	outcome, err := store.Begin(t.Context(), params)
	if err != nil || outcome.State != idempotency.New {
		t.Fatalf("Begin: %+v, %v; want new", outcome, err)
	}
	return outcome.Claim
}

func complete(t *testing.T, store *mongostore.Store, claim *idempotency.Claim) *idempotency.Record {
	t.Helper()
	record, err := store.Complete(t.Context(), claim, response("done"))
	if err != nil {
		t.Fatal(err)
	}
	return record
}

func response(body string) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(body)}
}

func stepOf(name string) *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: name, Arguments: idempotency.NoFingerprint, Response: response(name)}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

// loss loses the reply to a command: the server has run it, and the connection breaks.
type loss struct {
	mu sync.Mutex
	// command is the name of the one to lose, behind so many others of its name.
	command string
	behind  int
}

func (l *loss) arm(command string, behind int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.command, l.behind = command, behind
}

// lost reports whether it has happened since arm.
func (l *loss) lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.command == ""
}

// loses reports whether the reply to this message is the one.
func (l *loss) loses(message []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A command begins with its name, as a field that is a string.
	if l.command == "" || !bytes.Contains(message, []byte("\x02"+l.command+"\x00")) {
		return false
	}
	if l.behind > 0 {
		l.behind--
		return false
	}
	l.command = ""
	return true
}

// DialContext makes it the client's dialer.
func (l *loss) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &lossyConn{Conn: conn, loss: l}, nil
}

type lossyConn struct {
	net.Conn
	*loss
	next atomic.Bool
}

func (c *lossyConn) Write(data []byte) (int, error) {
	if c.loses(data) {
		c.next.Store(true)
	}
	return c.Conn.Write(data)
}

func (c *lossyConn) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	if err == nil && c.next.Load() {
		return 0, errors.Join(io.ErrUnexpectedEOF, c.Close())
	}
	return n, err
}

// clock shifts the time that the server tells, as a router does whose clock is wrong.
type clock time.Duration

func (c clock) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, address)
	return &shiftedConn{Conn: conn, by: time.Duration(c)}, err
}

type shiftedConn struct {
	net.Conn
	by time.Duration
}

func (c *shiftedConn) Read(data []byte) (int, error) {
	n, err := c.Conn.Read(data)
	_, date, found := bytes.Cut(data[:n], []byte("\x09localTime\x00"))
	if found && len(date) >= 8 {
		binary.LittleEndian.PutUint64(date, binary.LittleEndian.Uint64(date)+uint64(c.by.Milliseconds()))
	}
	return n, err
}
