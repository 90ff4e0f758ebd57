package redisstore

import (
	_ "embed"

	"github.com/redis/go-redis/v9"
)

// Scripts, and not functions: those need Redis 7 and the right to load them.
var (
	//go:embed scripts/prelude.lua
	prelude string
	//go:embed scripts/begin.lua
	beginSource string
	//go:embed scripts/take.lua
	takeSource string
	//go:embed scripts/complete.lua
	completeSource string
	//go:embed scripts/extend.lua
	extendSource string
	//go:embed scripts/addstep.lua
	addStepSource string
	//go:embed scripts/suspend.lua
	suspendSource string
	//go:embed scripts/release.lua
	releaseSource string
	//go:embed scripts/get.lua
	getSource string

	beginScript    = redis.NewScript(prelude + beginSource)
	takeScript     = redis.NewScript(prelude + takeSource)
	completeScript = redis.NewScript(prelude + completeSource)
	extendScript   = redis.NewScript(prelude + extendSource)
	addStepScript  = redis.NewScript(prelude + addStepSource)
	suspendScript  = redis.NewScript(prelude + suspendSource)
	releaseScript  = redis.NewScript(prelude + releaseSource)
	getScript      = redis.NewScript(prelude + getSource)
)
