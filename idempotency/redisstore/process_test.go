//go:build unix

package redisstore_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
)

// holderVariable makes this test binary a process that holds a key of that server.
const holderVariable = "SAMECOMMIT_REDIS_HOLDER"

// holderLease is long enough for a busy machine to come from the claim to the step.
const holderLease = 2 * time.Second

func TestMain(m *testing.M) {
	if address := os.Getenv(holderVariable); address != "" {
		if err := hold(context.Background(), address); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func charge(ctx context.Context, lease *idempotency.Lease, receipt string) (string, error) {
	return idempotency.Step(ctx, lease, "charge", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return receipt, nil })
}

func leasedWork(ctx context.Context, client redis.UniversalClient, fn func(ctx context.Context, lease *idempotency.Lease) (string, error)) (idempotency.Result[string], error) {
	store, err := redisstore.New(client, nil)
	if err != nil {
		return idempotency.Result[string]{}, err
	}
	leases, err := idempotency.NewLeaseClient(store, nil)
	if err != nil {
		return idempotency.Result[string]{}, err
	}
	return idempotency.DoLeased(ctx, leases, idempotency.Params{
		Key: params("k").Key, Fingerprint: params("k").Fingerprint, Lease: holderLease, Wait: 20 * time.Second,
	}, fn)
}

// hold charges, stands still, and goes on when it is told to.
func hold(ctx context.Context, address string) error {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer func() { _ = client.Close() }()
	_, err := leasedWork(ctx, client, func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		receipt, err := charge(ctx, lease, "the first one's")
		if err != nil {
			return "", err
		}
		fmt.Println("stopping")
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		_, _ = fmt.Scanln() // the signal arrives a little later
		_, err = idempotency.Step(context.WithoutCancel(ctx), lease, "late", idempotency.NoFingerprint, func(context.Context, idempotency.StepCall) (string, error) { return "", nil })
		if !errors.Is(err, idempotency.ErrLeaseEnded) && !errors.Is(err, idempotency.ErrClaimLost) {
			return "", fmt.Errorf("a late step: %w", err)
		}
		return receipt + ", late", nil
	})
	return err
}

// A process that stands still past its lease has lost the key: whoever goes on has its
// charge, and nothing that it does late is kept.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	holder := exec.CommandContext(t.Context(), os.Args[0])
	holder.Env = append(os.Environ(), holderVariable+"="+s.address())
	input, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	if !lines.Scan() || lines.Text() != "stopping" {
		t.Fatalf("the holder said %q", lines.Text())
	}
	result, err := leasedWork(t.Context(), s.client(nil), func(ctx context.Context, lease *idempotency.Lease) (string, error) {
		return charge(ctx, lease, "another one")
	})
	if err != nil || result.Value != "the first one's" || result.Record.Attempt != 2 {
		t.Errorf("%+v, %v; want the first one's charge, in attempt 2", result, err)
	}
	if err := holder.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if _, err := input.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), idempotency.ErrClaimLost.Error()) {
		t.Errorf("the holder said %q, want that its claim is lost", lines.Text())
	}
	if err := holder.Wait(); err != nil {
		t.Error(err)
	}
	record, err := s.store(nil).Get(t.Context(), params("k").Key)
	if err != nil || string(record.Response.Body) != `"the first one's"` {
		t.Errorf("%+v, %v; want the second one's answer", record, err)
	}
}
