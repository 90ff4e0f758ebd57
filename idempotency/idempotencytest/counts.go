package idempotencytest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Counts are the committed effects of a key, by what they are: {"charges": 1,
// "events": 1}. A call that was acknowledged has one of each, and none where
// Operation.Refused is set. One kind alone needs no name: {"": 1}.
type Counts map[string]int

func (c Counts) least() int { return slices.Min(slices.Collect(maps.Values(c))) }
func (c Counts) most() int  { return slices.Max(slices.Collect(maps.Values(c))) }

// all says that there are n effects of each kind.
func (c Counts) all(n int) bool { return c.least() == n && c.most() == n }

// String lists the counts: "2 effects", or "1 charges and 0 events".
func (c Counts) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if name == "" {
			name = "effects"
			if c[""] == 1 {
				name = "effect"
			}
			parts = append(parts, fmt.Sprintf("%d %s", c[""], name))
			continue
		}
		parts = append(parts, fmt.Sprintf("%d %s", c[name], name))
	}
	return strings.Join(parts, " and ")
}
