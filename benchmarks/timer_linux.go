package main

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timer sleeps more exactly than time.Sleep, which on Linux rounds a wait below
// a millisecond up to one.
type timer struct {
	fd   int
	file *os.File
}

func newTimer() (*timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	// Not blocking, so the runtime waits for it as for a connection.
	return &timer{fd: fd, file: os.NewFile(uintptr(fd), "timerfd")}, nil
}

// until returns at deadline, or at once where that has passed.
func (t *timer) until(deadline time.Time) error {
	left := time.Until(deadline)
	if left <= 0 {
		return nil
	}
	if err := unix.TimerfdSettime(t.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(left))}, nil); err != nil {
		return os.NewSyscallError("timerfd_settime", err)
	}
	var expirations [8]byte
	_, err := t.file.Read(expirations[:])
	return err
}

func (t *timer) close() error { return t.file.Close() }
