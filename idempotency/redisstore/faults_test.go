package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
)

func params(id string) *idempotency.BeginParams {
	return &idempotency.BeginParams{
		Key: idempotency.Key{Scope: "test", ID: id}, Fingerprint: idempotency.FingerprintOf(id), TTL: time.Hour, Lease: time.Hour,
	}
}

func begin(t *testing.T, store *redisstore.Store, params *idempotency.BeginParams) *idempotency.Claim {
	t.Helper()
	outcome, err := store.Begin(t.Context(), params)
	if err != nil || outcome.State != idempotency.New {
		t.Fatalf("Begin: %+v, %v; want new", outcome, err)
	}
	return outcome.Claim
}

func response(body string) *idempotency.Response {
	return &idempotency.Response{Type: idempotency.TypeBytes, Body: []byte(body)}
}

func stepOf(name string) *idempotency.StepRecord {
	return &idempotency.StepRecord{Name: name, Arguments: idempotency.NoFingerprint, Response: response(name)}
}

// The reply to each verb is lost after the server has run it. go-redis asks again by
// itself, or it does not and the caller has to.
func TestLostReplies(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	good := s.store(nil)
	verbs := map[string]func(ctx context.Context, store *redisstore.Store, claim *idempotency.Claim) error{
		"Complete": func(ctx context.Context, store *redisstore.Store, claim *idempotency.Claim) error {
			_, err := store.Complete(ctx, claim, response("done"))
			return err
		},
		"AddStep": func(ctx context.Context, store *redisstore.Store, claim *idempotency.Claim) error {
			return store.AddStep(ctx, claim, stepOf("charge"))
		},
		"Extend": func(ctx context.Context, store *redisstore.Store, claim *idempotency.Claim) error {
			_, err := store.Extend(ctx, claim, 2*time.Hour)
			return err
		},
		"Suspend": func(ctx context.Context, store *redisstore.Store, claim *idempotency.Claim) error {
			return store.Suspend(ctx, claim)
		},
	}
	for name, verb := range verbs { // so that the server has the scripts: the reply is not that it has not
		if err := verb(t.Context(), good, begin(t, good, params("first "+name))); err != nil {
			t.Fatal(err)
		}
	}
	for name, verb := range verbs {
		for _, retries := range []int{-1, 3} {
			t.Run(fmt.Sprintf("%s, %d retries", name, max(retries, 0)), func(t *testing.T) {
				t.Parallel()
				armed := false
				client := s.losing(retries, &armed)
				store := newStore(t, client, nil)
				claim := begin(t, store, params(t.Name()))
				armed = true
				err := verb(t.Context(), store, claim)
				if armed {
					t.Fatal("no reply was lost")
				}
				if retries > 0 && err != nil || retries < 0 && err == nil {
					t.Fatalf("got %v; want that the client's own retries get over it", err)
				}
				record, err := good.Get(t.Context(), claim.Key)
				if err != nil || record.ClaimID != claim.ID {
					t.Fatalf("%+v, %v; want the claim's record", record, err)
				}
				if done := map[string]bool{
					"Complete": record.State == idempotency.Completed, "AddStep": len(record.Steps) == 1,
					"Extend": record.LockedUntil.After(claim.LockedUntil), "Suspend": record.Suspended(),
				}[name]; !done {
					t.Errorf("%+v: it was not done", record)
				}
			})
		}
	}
}

func TestLostReplyToBegin(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	for _, retries := range []int{-1, 3} {
		t.Run(fmt.Sprintf("%d retries", max(retries, 0)), func(t *testing.T) {
			t.Parallel()
			armed := false
			client := s.losing(retries, &armed)
			store := newStore(t, client, nil)
			begin(t, store, params(t.Name()+" before")) // the scripts are there
			own := params(t.Name())
			own.ClaimID = idempotency.NewClaimID()
			armed = true
			outcome, err := store.Begin(t.Context(), own)
			if retries < 0 {
				if err == nil || errors.Is(err, idempotency.ErrUnavailable) {
					t.Fatalf("%+v, %v; want an error that does not say that nothing was committed", outcome, err)
				}
				outcome, err = store.Begin(t.Context(), own)
			}
			if err != nil || outcome.State != idempotency.New || outcome.Claim.ID != own.ClaimID || outcome.Claim.Attempt != 1 {
				t.Errorf("%+v, %v; want the same claim", outcome, err)
			}
		})
	}
}

// A completion knows itself, and not another call's.
func TestSecondCompletionIsRefused(t *testing.T) {
	t.Parallel()
	store := startServer(t).store(nil)
	claim := begin(t, store, params("k"))
	for i, want := range []error{nil, idempotency.ErrClaimLost} {
		if _, err := store.Complete(t.Context(), claim, response("done")); !errors.Is(err, want) {
			t.Errorf("completion %d: %v, want %v", i+1, err, want)
		}
	}
}

func TestScriptsAreFlushed(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	store, client := s.store(nil), s.client(nil)
	flush := func() {
		t.Helper()
		if err := client.ScriptFlush(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
	}
	claim := begin(t, store, params("k"))
	flush()
	if err := store.AddStep(t.Context(), claim, stepOf("charge")); err != nil {
		t.Error(err)
	}
	flush()
	if _, err := store.Complete(t.Context(), claim, response("done")); err != nil {
		t.Error(err)
	}
}

// What has begun can end on a server whose memory is full; nothing new begins.
func TestFullMemory(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	store, client := s.store(nil), s.client(nil)
	claims := make(map[string]*idempotency.Claim)
	for _, id := range []string{"complete", "release", "suspend"} {
		claims[id] = begin(t, store, params(id))
	}
	if err := client.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	if outcome, err := store.Begin(t.Context(), params("new")); !errors.Is(err, idempotency.ErrUnavailable) {
		t.Errorf("Begin: %+v, %v; want ErrUnavailable", outcome, err)
	}
	large := strings.Repeat("x", 100_000)
	extended, err := store.Extend(t.Context(), claims["complete"], time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	step := stepOf("charge")
	step.Response.Body = []byte(large)
	if err := store.AddStep(t.Context(), extended, step); err != nil {
		t.Error(err)
	}
	if _, err := store.Complete(t.Context(), extended, response(large)); err != nil {
		t.Error(err)
	}
	if err := errors.Join(store.Release(t.Context(), claims["release"]), store.Suspend(t.Context(), claims["suspend"])); err != nil {
		t.Error(err)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	for policy, evicts := range map[string]bool{"noeviction": false, "volatile-ttl": true, "volatile-lru": true, "allkeys-lru": true} {
		for aof, volatile := range map[string]bool{"yes": false, "no": true} {
			t.Run(policy+", appendonly "+aof, func(t *testing.T) {
				t.Parallel()
				err := startServer(t, "--maxmemory-policy", policy, "--appendonly", aof).store(nil).Check(t.Context())
				if errors.Is(err, redisstore.ErrEvicts) != evicts || errors.Is(err, redisstore.ErrVolatile) != volatile || !evicts && !volatile && err != nil {
					t.Errorf("got %v; want ErrEvicts: %t, ErrVolatile: %t", err, evicts, volatile)
				}
			})
		}
	}
}

// A server that is killed has what its AOF has.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		args []string
		kept bool
	}{
		"no AOF":      {nil, false},
		"AOF, always": {[]string{"--appendonly", "yes", "--appendfsync", "always"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServer(t, test.args...)
			store := s.store(nil)
			claim := begin(t, store, params("k"))
			s.kill()
			s.restart()
			_, err := store.Complete(t.Context(), claim, response("done"))
			if test.kept && err != nil || !test.kept && !errors.Is(err, idempotency.ErrClaimLost) {
				t.Errorf("got %v; the claim was kept: %t", err, test.kept)
			}
		})
	}
}

// Why Check refuses such policies: the claim of running work is evicted, and the key has
// two holders.
func TestEviction(t *testing.T) {
	t.Parallel()
	s := startServer(t, "--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru")
	store, client := s.store(nil), s.client(nil)
	first := begin(t, store, params("k"))
	for i := 0; client.Exists(t.Context(), store.RedisKey(first.Key)).Val() == 1; i++ {
		if err := client.Set(t.Context(), fmt.Sprintf("other %d", i), strings.Repeat("x", 10_000), 0).Err(); err != nil || i > 10_000 {
			t.Fatalf("not evicted: %v", err)
		}
	}
	begin(t, store, params("k"))
	_, err := store.Complete(t.Context(), first, response("done"))
	wantErr(t, err, idempotency.ErrClaimLost)
}

// replica starts a replica of s, and waits until it has what s has.
func (s *server) replica() *server {
	s.Helper()
	return s.replicaWith(nil)
}

func (s *server) replicaWith(environ []string) *server {
	s.Helper()
	r := startServerWith(s.T, environ, "--replicaof", "127.0.0.1", fmt.Sprint(s.port))
	r.until("the replica is in step", func() bool {
		text, err := r.client(nil).Info(s.Context(), "replication").Result()
		return err == nil && strings.Contains(text, "master_link_status:up")
	})
	return r
}

func (s *server) promote() {
	s.Helper()
	if err := s.client(nil).Do(s.Context(), "replicaof", "no", "one").Err(); err != nil {
		s.Fatal(err)
	}
}

func TestReadOnlyReplica(t *testing.T) {
	t.Parallel()
	primary := startServer(t)
	replica := primary.replica()
	if outcome, err := replica.store(nil).Begin(t.Context(), params("k")); !errors.Is(err, idempotency.ErrReadOnly) {
		t.Errorf("%+v, %v; want ErrReadOnly", outcome, err)
	}
}

// A replica that has not heard of a claim, and is promoted, hands out another. The
// first holder then learns that it has lost. With Replicas nobody was told New.
func TestFailover(t *testing.T) {
	t.Parallel()
	for name, replicas := range map[string]int{"not waited for": 0, "waited for": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			primary := startServer(t)
			replica := primary.replica()
			config := &redisstore.Config{Replicas: replicas, ReplicaTimeout: 200 * time.Millisecond}
			store := primary.store(config)
			heard := begin(t, primary.store(&redisstore.Config{Replicas: replicas, ReplicaTimeout: 10 * time.Second}), params("heard"))
			primary.until("the replica has heard", func() bool {
				_, err := replica.client(nil).Get(t.Context(), store.RedisKey(heard.Key)).Result()
				return err == nil
			})
			// It stands still, and so hears nothing.
			if err := replica.client(nil).Do(t.Context(), "replicaof", "127.0.0.1", "1").Err(); err != nil {
				t.Fatal(err)
			}
			primary.until("the primary has lost it", func() bool {
				text, err := primary.client(nil).Info(t.Context(), "replication").Result()
				return err == nil && strings.Contains(text, "connected_slaves:0")
			})
			own := params("unheard")
			own.ClaimID = idempotency.NewClaimID()
			outcome, err := store.Begin(t.Context(), own)
			if replicas == 0 && err != nil || replicas > 0 && !errors.Is(err, redisstore.ErrNotReplicated) {
				t.Fatalf("%+v, %v; with %d replicas", outcome, err, replicas)
			}
			if replicas > 0 {
				// Over a connection that has written nothing before.
				if outcome, err := primary.store(config).Begin(t.Context(), own); !errors.Is(err, redisstore.ErrNotReplicated) {
					t.Errorf("asked again: %+v, %v; want ErrNotReplicated", outcome, err)
				}
				if err := store.AddStep(t.Context(), heard, stepOf("charge")); !errors.Is(err, redisstore.ErrNotReplicated) {
					t.Errorf("AddStep: %v, want ErrNotReplicated", err)
				}
				if _, err := store.Complete(t.Context(), heard, response("done")); err != nil {
					t.Errorf("Complete: %v, want that it waits and does not fail", err)
				}
			}
			primary.kill()
			replica.promote()
			after := replica.store(nil)
			if record, err := after.Get(t.Context(), heard.Key); err != nil || record.State != idempotency.InProgress {
				t.Errorf("%+v, %v; want the claim that the replica has heard of", record, err)
			}
			begin(t, after, params("unheard"))
			if replicas == 0 {
				if _, err := after.Complete(t.Context(), outcome.Claim, response("done")); !errors.Is(err, idempotency.ErrClaimLost) {
					t.Errorf("the first holder: %v, want ErrClaimLost", err)
				}
			}
		})
	}
}

func TestReplicasThatHear(t *testing.T) {
	t.Parallel()
	primary := startServer(t)
	primary.replica()
	store := primary.store(&redisstore.Config{Replicas: 1, ReplicaTimeout: 10 * time.Second})
	claim := begin(t, store, params("k"))
	if err := store.AddStep(t.Context(), claim, stepOf("charge")); err != nil {
		t.Error(err)
	}
	if _, err := store.Complete(t.Context(), claim, response("done")); err != nil {
		t.Error(err)
	}
}

// Neither the hash slot nor MONITOR tells what a client chose.
func TestRedisKey(t *testing.T) {
	t.Parallel()
	store := newStore(t, redis.NewClient(&redis.Options{}), nil)
	seen := make(map[string]bool)
	for i := range 300 {
		name := store.RedisKey(idempotency.Key{Scope: "s", ID: fmt.Sprintf("{hot}%d", i)})
		if strings.Contains(name, "hot") || strings.ContainsAny(name, "{}") || !strings.HasPrefix(name, redisstore.DefaultPrefix) || seen[name] {
			t.Fatalf("%q", name)
		}
		seen[name] = true
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{})
	for field, call := range map[string]func() (*redisstore.Store, error){
		"client":          func() (*redisstore.Store, error) { return redisstore.New(nil, nil) },
		"Config.Replicas": func() (*redisstore.Store, error) { return redisstore.New(client, &redisstore.Config{Replicas: -1}) },
		"Config.Replicas of a ring": func() (*redisstore.Store, error) {
			return redisstore.New(redis.NewRing(&redis.RingOptions{}), &redisstore.Config{Replicas: 1})
		},
		"Config.ReplicaTimeout": func() (*redisstore.Store, error) {
			return redisstore.New(client, &redisstore.Config{ReplicaTimeout: -1})
		},
	} {
		_, err := call()
		if param, ok := errors.AsType[*idempotency.ParamError](err); !ok || !strings.HasPrefix(field, param.Field) {
			t.Errorf("got %v, want a *ParamError of %s", err, field)
		}
	}
}
