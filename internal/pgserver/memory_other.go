//go:build unix && !linux

package pgserver

// memoryFolder returns "": no folder here is known to be kept in memory.
func memoryFolder() string { return "" }
