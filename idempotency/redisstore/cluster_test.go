package redisstore_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/samecommit/samecommit/idempotency"
	"github.com/samecommit/samecommit/idempotency/redisstore"
)

const slots = 16384

// startCluster starts three primaries.
func startCluster(t *testing.T) *redis.ClusterClient {
	t.Helper()
	const nodes = 3
	var servers []*server
	var addresses []string
	for i := range nodes {
		s := startServer(t, "--cluster-enabled", "yes")
		first := s
		if i > 0 {
			first = servers[0]
		}
		client := s.client(nil)
		if err := client.ClusterAddSlotsRange(t.Context(), i*slots/nodes, (i+1)*slots/nodes-1).Err(); err != nil {
			t.Fatal(err)
		}
		if err := client.ClusterMeet(t.Context(), "127.0.0.1", fmt.Sprint(first.port)).Err(); err != nil {
			t.Fatal(err)
		}
		servers, addresses = append(servers, s), append(addresses, s.address())
	}
	for _, s := range servers {
		s.until("the cluster is formed", func() bool {
			info, err := s.client(nil).ClusterInfo(t.Context()).Result()
			return err == nil && strings.Contains(info, "cluster_state:ok") && strings.Contains(info, "cluster_known_nodes:3")
		})
	}
	cluster := redis.NewClusterClient(&redis.ClusterOptions{Addrs: addresses})
	t.Cleanup(func() { _ = cluster.Close() })
	return cluster
}

func TestCluster(t *testing.T) {
	t.Parallel()
	cluster := startCluster(t)
	checkContract(t, cluster)
	t.Run("what a client chose does not choose the node", func(t *testing.T) {
		t.Parallel()
		store, found := newStore(t, cluster, nil), make(map[int64]bool)
		for i := range 300 {
			slot, err := cluster.ClusterKeySlot(t.Context(), store.RedisKey(idempotency.Key{Scope: "s", ID: fmt.Sprintf("{hot}%d", i)})).Result()
			if err != nil {
				t.Fatal(err)
			}
			found[slot] = true
		}
		if len(found) < 290 {
			t.Errorf("300 keys are in %d slots", len(found))
		}
	})
	t.Run("replicas are asked at the node of the key", func(t *testing.T) {
		t.Parallel()
		store := newStore(t, cluster, &redisstore.Config{Replicas: 1, ReplicaTimeout: 1e6})
		_, err := store.Begin(t.Context(), params("k"))
		wantErr(t, err, redisstore.ErrNotReplicated)
	})
	t.Run("Check asks each primary", func(t *testing.T) {
		t.Parallel()
		wantErr(t, newStore(t, cluster, nil).Check(t.Context()), redisstore.ErrVolatile)
	})
}
