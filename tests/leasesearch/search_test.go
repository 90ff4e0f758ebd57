// Package leasesearch searches every schedule of a few callers of leased work for
// one that breaks a promise. It is a model of the rules of docs/design.md, part "Two
// protocols", and not of the code: the suite of package storetest and the tests of
// DoLeased hold the code to the rules, this holds the rules to their purpose.
package leasesearch

import "testing"

const (
	callers  = 3
	crashes  = 2
	failures = 2
)

// rules are those of the protocol, and wrong variants of them that look right.
type rules struct {
	// releaseAlways deletes the record after every failure.
	releaseAlways bool
	// mayHaveRunByAttempt says that a step may have run from the second attempt on.
	mayHaveRunByAttempt bool
	// unfencedSteps lets anybody add a step.
	unfencedSteps bool
}

// place is where a caller is.
type place uint8

const (
	idle place = iota
	claimed
	calling   // about to call somebody else
	called    // it has an answer from there
	recorded  // and the step is in the record, as far as it knows
	failed    // the step's function has returned an error
	gone      // it has returned, or died
	completed // the answer was its own
)

type caller struct {
	at      place
	claim   uint8 // 0 is none
	resumed bool
	attempt uint8
	acted   bool
	// begun says that, when its claim was made, the effect was there, or somebody
	// was about to make it.
	begun bool
	// late says that its own clock is past the lease.
	late bool
	// value is what its step returned: 1 and more, by who called.
	value uint8
}

// state is a record and everybody.
type state struct {
	exists, done     bool
	claim, attempt   uint8
	ended, suspended bool
	step, answer     uint8 // whose value; 0 is none
	effects          uint8
	crashes          uint8
	failures         uint8
	who              [callers]caller
}

// broken is a promise that a step of the schedule has broken.
type broken string

// next returns what can follow s, and what that breaks.
func (r rules) next(s state, visit func(state, broken)) {
	if s.exists && !s.done && !s.ended && !s.suspended {
		after := s // the lease ends, and its holder's clock says so, if it looks
		after.ended = true
		for i := range after.who {
			if after.who[i].claim == s.claim {
				after.who[i].late = true
			}
		}
		visit(after, "")
	}
	for i := range s.who {
		r.move(s, i, visit)
		if c := s.who[i]; c.at != idle && c.at != gone && c.at != completed && s.crashes < crashes {
			after := s
			after.crashes++
			after.who[i] = caller{at: gone}
			visit(after, "")
		}
	}
}

func (r rules) move(s state, i int, visit func(state, broken)) {
	c := s.who[i]
	holds := s.exists && !s.done && s.claim == c.claim
	become := func(s state, c caller, b broken) {
		if c.at == gone {
			c = caller{at: gone}
		}
		s.who[i] = c
		visit(s, b)
	}
	switch c.at {
	case idle:
		switch {
		case s.done:
			become(s, caller{at: gone}, "")
		case s.exists && !s.ended && !s.suspended: // in progress
		default:
			after := s
			attempt := uint8(1)
			if s.exists && s.suspended {
				attempt = s.attempt
			} else if s.exists {
				attempt = min(s.attempt+1, 3) // nobody asks for more
			}
			// A caller has one claim at a time, and nobody else has its former ones.
			claim := uint8(i) + 1
			after.exists, after.claim, after.attempt, after.ended, after.suspended = true, claim, attempt, false, false
			if !s.exists {
				after.step = 0
			}
			begun := s.effects > 0
			for _, other := range s.who {
				begun = begun || other.at == calling
			}
			become(after, caller{at: claimed, claim: claim, resumed: s.exists, attempt: attempt, begun: begun, value: after.step}, "")
		}
	case claimed:
		switch {
		case c.value != 0: // the step was recorded when the claim was made
			c.at = recorded
			become(s, c, "")
		case c.late:
			c.at = failed
			become(s, c, "")
		default:
			c.at, c.acted = calling, true
			become(s, c, "")
		}
	case calling:
		// However late: it was on its way.
		mayHaveRun := c.resumed
		if r.mayHaveRunByAttempt {
			mayHaveRun = c.attempt > 1
		}
		after, b := s, broken("")
		if !mayHaveRun && c.begun {
			b = "an effect was repeated by a caller who was told that nobody had begun"
		}
		after.effects = 1
		c.value, c.at = uint8(i)+1, called
		become(after, c, b)
		if s.failures < failures { // the effect is there, and its reply is not
			after.failures++
			c.value, c.at = 0, failed
			become(after, c, b)
		}
	case called:
		after := s
		if holds || r.unfencedSteps && s.exists && !s.done {
			if s.step == 0 {
				after.step = c.value
			}
			c.at = recorded
		} else {
			c.at = gone // ErrClaimLost
		}
		become(after, c, "")
		if s.failures < failures { // the store is down until the lease has ended
			after := s
			after.failures++
			c.at = failed
			become(after, c, "")
		}
	case recorded:
		after, b := s, broken("")
		if !holds {
			c.at = gone // ErrClaimLost
			become(s, c, "")
			return
		}
		if s.answer != 0 {
			b = "a key was completed twice"
		}
		if s.step != 0 && c.value != s.step {
			b = "the answer is not that of the first recorded step"
		}
		after.done, after.answer = true, c.value
		c.at = completed
		become(after, c, b)
	case failed:
		after := s
		if holds {
			if (c.acted || c.resumed) && !r.releaseAlways {
				after.suspended = true
			} else {
				after.exists, after.claim, after.attempt, after.ended, after.step = false, 0, 0, false, 0
			}
		}
		c.at = gone
		become(after, c, "")
		// Nobody hears of the failure, and the caller comes again.
		become(after, caller{at: idle}, "")
	}
}

// search looks at every state that can be reached, and returns the shortest way to
// one that breaks a promise.
func search(r rules) (states int, found broken, depth int) {
	seen := map[state]bool{{}: true}
	level := []state{{}}
	for ; len(level) > 0; depth++ {
		var following []state
		for _, s := range level {
			r.next(s, func(after state, b broken) {
				if b != "" && found == "" {
					found = b
				}
				if !seen[after] {
					seen[after] = true
					following = append(following, after)
				}
			})
			if found != "" {
				return len(seen), found, depth + 1
			}
		}
		level = following
	}
	return len(seen), "", depth
}

func TestLeaseRules(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		rules rules
		want  broken
	}{
		"as they are":                          {rules{}, ""},
		"release after every failure":          {rules{releaseAlways: true}, "an effect was repeated by a caller who was told that nobody had begun"},
		"may have run from the second attempt": {rules{mayHaveRunByAttempt: true}, "an effect was repeated by a caller who was told that nobody had begun"},
		"anybody adds a step":                  {rules{unfencedSteps: true}, "the answer is not that of the first recorded step"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states, found, depth := search(test.rules)
			t.Logf("%d states, %d steps", states, depth)
			if found != test.want {
				t.Errorf("found %q after %d steps, want %q", found, depth, test.want)
			}
			if test.want == "" && states < 10_000 {
				t.Errorf("%d states are too few to have searched anything", states)
			}
		})
	}
}
