//go:build !linux

package main

import "time"

// timer sleeps as exactly as time.Sleep does here.
type timer struct{}

func newTimer() (*timer, error) { return &timer{}, nil }

// until returns at deadline, or at once where that has passed.
func (*timer) until(deadline time.Time) error {
	time.Sleep(time.Until(deadline))
	return nil
}

func (*timer) close() error { return nil }
