package pgcut_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/samecommit/samecommit/internal/pgcut"
)

// server is a scripted PostgreSQL. It answers every request with COMMIT and
// tells what it received.
type server struct {
	address string
	// events are the texts of queries, "cancel", and how a connection ended.
	events chan string
}

func newServer(t *testing.T) *server {
	t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	s := &server{address: listener.Addr().String(), events: make(chan string, 100)}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go s.serve(conn)
		}
	}()
	return s
}

func (s *server) serve(conn net.Conn) {
	defer func() { _ = conn.Close() }()
	backend := pgproto3.NewBackend(conn, conn)
	start, err := backend.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if _, ok := start.(*pgproto3.CancelRequest); ok {
		s.events <- "cancel"
		return
	}
	backend.Send(&pgproto3.AuthenticationOk{})
	backend.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	for {
		if err := backend.Flush(); err != nil {
			s.events <- "reset"
			return
		}
		message, err := backend.Receive()
		switch {
		case errors.Is(err, syscall.ECONNRESET):
			s.events <- "reset"
			return
		case err != nil:
			s.events <- "closed"
			return
		}
		switch message := message.(type) {
		case *pgproto3.Query:
			s.events <- message.String
			backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("COMMIT")})
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Parse:
			s.events <- message.Query
			backend.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			backend.Send(&pgproto3.ParameterDescription{})
			backend.Send(&pgproto3.NoData{})
		case *pgproto3.Bind:
			backend.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			s.events <- "execute"
			backend.Send(&pgproto3.CommandComplete{CommandTag: []byte("COMMIT")})
		case *pgproto3.Sync:
			backend.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		}
	}
}

func (s *server) config(t *testing.T, cutter *pgcut.Cutter) *pgconn.Config {
	t.Helper()
	config, err := pgconn.ParseConfig("postgres://u@" + s.address + "/d?sslmode=disable&max_protocol_version=3.0")
	if err != nil {
		t.Fatal(err)
	}
	if err := cutter.Install(config); err != nil {
		t.Fatal(err)
	}
	return config
}

func connect(t *testing.T, s *server, cutter *pgcut.Cutter) *pgconn.PgConn {
	t.Helper()
	conn, err := pgconn.ConnectConfig(t.Context(), s.config(t, cutter))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cutter.Close()
		_ = conn.Close(context.WithoutCancel(t.Context()))
		<-conn.CleanupDone()
	})
	return conn
}

func commit(ctx context.Context, conn *pgconn.PgConn) error {
	_, err := conn.Exec(ctx, "commit").ReadAll()
	return err
}

func TestMessagesAreRecorded(t *testing.T) {
	t.Parallel()
	cutter := &pgcut.Cutter{}
	conn := connect(t, newServer(t), cutter)
	if err := commit(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	want := "[F1 - B1 R B2 K B3 Z F2 Q commit B4 C commit B5 Z]"
	if got := fmt.Sprint(cutter.Messages()); got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	// A prepared commit is known by its name, and counting begins anew.
	if _, err := conn.Prepare(t.Context(), "c", "commit", nil); err != nil {
		t.Fatal(err)
	}
	cutter.Arm(nil)
	if result := conn.ExecPrepared(t.Context(), "c", nil, nil, nil).Read(); result.Err != nil {
		t.Fatal(result.Err)
	}
	commits := slices.DeleteFunc(cutter.Messages(), func(m pgcut.Message) bool { return !m.Commit })
	if got, want := fmt.Sprint(commits), "[F3 E commit B4 C commit]"; got != want {
		t.Errorf("got %s of %v, want %s", got, cutter.Messages(), want)
	}
	if cutter.Cut() != nil {
		t.Errorf("cut %v without a point", cutter.Cut())
	}
}

func TestEveryPointIsCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		point pgcut.Point
		// heard says that the server got the query.
		heard, unanswered bool
		succeeds          bool
	}{
		{point: pgcut.Point{From: pgcut.Frontend, Number: 1}},
		{point: pgcut.Point{From: pgcut.Frontend, Number: 1, After: true}, heard: true, unanswered: true},
		{point: pgcut.Point{From: pgcut.Backend, Number: 1}, heard: true, unanswered: true},
		{point: pgcut.Point{From: pgcut.Backend, Number: 1, After: true}, heard: true, unanswered: true},
		{point: pgcut.Point{From: pgcut.Backend, Number: 2}, heard: true, unanswered: true},
		{point: pgcut.Point{From: pgcut.Backend, Number: 2, After: true}, heard: true, succeeds: true},
	} {
		for _, mode := range []pgcut.Mode{pgcut.Reset, pgcut.Close, pgcut.Silence} {
			point := test.point
			point.Mode = mode
			t.Run(point.String(), func(t *testing.T) {
				t.Parallel()
				s := newServer(t)
				cutter := &pgcut.Cutter{}
				conn := connect(t, s, cutter)
				cutter.Arm(&point)
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				err := commit(ctx, conn)
				if (err == nil) != test.succeeds {
					t.Errorf("the client got %v, want success: %t", err, test.succeeds)
				}
				if timedOut := errors.Is(err, context.DeadlineExceeded); err != nil && timedOut != (mode == pgcut.Silence) {
					t.Errorf("the client got %v, want a timeout of silence only", err)
				}
				cut := cutter.Cut()
				if cut == nil || cut.Point != point || cut.Ambiguous != test.unanswered || cut.Unanswered != test.unanswered || cut.Unsynced {
					t.Errorf("cut %+v, want the point, unanswered: %t", cut, test.unanswered)
				}
				end := "reset"
				switch mode {
				case pgcut.Close:
					end = "closed"
				case pgcut.Silence:
					end = "cancel" // takes another connection, and passes
				}
				if mode == pgcut.Silence && err == nil {
					return // nobody has anything more to say
				}
				before := waitForEvent(t, s, end, "commit", "cancel")
				if slices.Contains(before, "commit") != test.heard {
					t.Errorf("the server got %q, want the commit: %t", before, test.heard)
				}
			})
		}
	}
}

// waitForEvent returns the events before the given one, which are to be among
// those allowed.
func waitForEvent(t *testing.T, s *server, want string, allowed ...string) (before []string) {
	t.Helper()
	for {
		select {
		case event := <-s.events:
			if event == want {
				return before
			}
			if !slices.Contains(allowed, event) {
				t.Fatalf("the server saw %q, want %q", event, want)
			}
			before = append(before, event)
		case <-time.After(10 * time.Second):
			t.Fatalf("the server has not seen %q, but %q", want, before)
		}
	}
}

func TestCommitIsCutWhateverItsNumber(t *testing.T) {
	t.Parallel()
	cutter := &pgcut.Cutter{}
	conn := connect(t, newServer(t), cutter)
	cutter.Arm(&pgcut.Point{From: pgcut.Frontend, Commit: true, Mode: pgcut.Reset})
	if _, err := conn.Exec(t.Context(), "select").ReadAll(); err != nil {
		t.Fatal(err)
	}
	if err := commit(t.Context(), conn); err == nil {
		t.Error("the commit was not cut")
	}
	if cut := cutter.Cut(); cut == nil || cut.Message.Number != 2 || !cut.Message.Commit || cut.Ambiguous {
		t.Errorf("cut %+v, want the second message, the commit, which the server has not got", cut)
	}
}

// A request that is cut in its midst leaves the server waiting for the rest.
func TestRequestCutInItsMidst(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cutter := &pgcut.Cutter{}
	conn := connect(t, s, cutter)
	// Parse, Bind, Describe, Execute, Sync in one write.
	cutter.Arm(&pgcut.Point{From: pgcut.Frontend, Number: 4, After: true, Mode: pgcut.Close})
	if result := conn.ExecParams(t.Context(), "commit", nil, nil, nil, nil).Read(); !errors.Is(result.Err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want the end of the connection", result.Err)
	}
	waitForEvent(t, s, "closed", "commit", "execute", "cancel")
	if cut := cutter.Cut(); cut == nil || !cut.Unsynced || cut.Unanswered || !cut.Ambiguous || cut.Message.Type != 'E' {
		t.Errorf("cut %+v, want Unsynced and Ambiguous at the Execute", cut)
	}
}

// A word in a query is no COMMIT: who looks for one would be told that it was cut.
func TestCommitIsToldFromItsName(t *testing.T) {
	t.Parallel()
	for sql, want := range map[string]bool{
		"COMMIT AND NO CHAIN":                      true,
		"insert into effects values ('a'); commit": true,
		"-- name: End :exec\n/* traced */ commit":  true,
		`SELECT 'commit' FROM "commit"`:            false,
		"SELECT 1 -- before the commit":            false,
	} {
		cutter := &pgcut.Cutter{}
		conn := connect(t, newServer(t), cutter)
		cutter.Arm(nil)
		if _, err := conn.Exec(t.Context(), sql).ReadAll(); err != nil {
			t.Fatal(err)
		}
		if sent := cutter.Messages()[0]; sent.Commit != want {
			t.Errorf("%s: %v, want a commit: %t", sql, sent, want)
		}
	}
}

func TestOutageRefusesConnections(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cutter := &pgcut.Cutter{}
	conn := connect(t, s, cutter)
	cutter.Arm(&pgcut.Point{From: pgcut.Backend, Number: 1, Mode: pgcut.Outage})
	if err := commit(t.Context(), conn); err == nil {
		t.Error("the connection was not cut")
	}
	config := s.config(t, cutter)
	if _, err := pgconn.ConnectConfig(t.Context(), config); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("got %v, want a refusal", err)
	}
	cutter.Arm(nil)
	again, err := pgconn.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestEncryptionIsRefused(t *testing.T) {
	t.Parallel()
	config, err := pgconn.ParseConfig("postgres://u@localhost/d?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	config.Fallbacks = []*pgconn.FallbackConfig{{TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12}}}
	if err := (&pgcut.Cutter{}).Install(config); err == nil || !strings.Contains(err.Error(), "sslmode=disable") {
		t.Errorf("got %v, want a refusal that says what to do", err)
	}
}
