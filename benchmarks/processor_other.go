//go:build !linux

package main

import "time"

// processTime is not known here.
func processTime(uint32) time.Duration { return 0 }

// ownTime is not known here.
func ownTime() time.Duration { return 0 }
