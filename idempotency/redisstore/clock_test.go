//go:build linux

package redisstore_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/samecommit/samecommit/idempotency"
)

// shiftSource makes a program's clock so many seconds wrong.
const shiftSource = `#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
int gettimeofday(struct timeval *now, void *zone) {
	int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
	int result = real(now, zone);
	now->tv_sec += (%d);
	return result;
}
`

// shifted is the environment of a server whose clock is wrong.
func shifted(t *testing.T, by time.Duration) []string {
	t.Helper()
	if _, err := exec.LookPath("gcc"); err != nil {
		if os.Getenv(requiredVariable) == "local" {
			t.Fatal(err)
		}
		t.Skip("gcc is not on the path: it makes the server's clock wrong")
	}
	source, library := filepath.Join(t.TempDir(), "shift.c"), filepath.Join(t.TempDir(), "shift.so")
	if err := os.WriteFile(source, fmt.Appendf(nil, shiftSource, int(by.Seconds())), 0o600); err != nil {
		t.Fatal(err)
	}
	if output, err := exec.CommandContext(t.Context(), "gcc", "-shared", "-fPIC", "-o", library, source, "-ldl").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	return []string{"LD_PRELOAD=" + library}
}

// The server's clock is the only one that counts.
func TestServerOfAnotherDay(t *testing.T) {
	t.Parallel()
	for name, by := range map[string]time.Duration{"ahead": 24 * time.Hour, "behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startServerWith(t, shifted(t, by))
			now, err := s.client(nil).Time(t.Context()).Result()
			if off := time.Until(now) - by; err != nil || off.Abs() > time.Minute {
				t.Fatalf("the server's clock says %v (%v)", now, err)
			}
			checkContract(t, s.client(nil))
		})
	}
}

// A limit: all nodes need one time. A replica of tomorrow ends every lease and answer.
func TestReplicaOfTomorrow(t *testing.T) {
	t.Parallel()
	primary := startServer(t)
	replica := primary.replicaWith(shifted(t, 24*time.Hour))
	store := primary.store(nil)
	begin(t, store, params("running"))
	if _, err := store.Complete(t.Context(), begin(t, store, params("done")), response("done")); err != nil {
		t.Fatal(err)
	}
	primary.until("the replica has both", func() bool {
		n, err := replica.client(nil).DBSize(t.Context()).Result()
		return err == nil && n >= 1
	})
	primary.kill()
	replica.promote()
	after := replica.store(nil)
	if claim := begin(t, after, params("running")); claim.Attempt != 2 {
		t.Errorf("attempt %d of the lease that ended early", claim.Attempt)
	}
	_, err := after.Get(t.Context(), params("done").Key)
	wantErr(t, err, idempotency.ErrNotFound)
}
