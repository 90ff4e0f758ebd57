//go:build unix

package chaos_test

import (
	"testing"

	"github.com/samecommit/samecommit/tests/leak"
)

func TestMain(m *testing.M) {
	beClient() // does not return in a client process
	leak.Main(m)
}
