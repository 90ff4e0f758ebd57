package pgserver

import "syscall"

// memoryFolder returns a folder that is kept in memory and has room for a
// server, or "" if there is none: /dev/shm is as small as 64 MB in a container.
//
// A database is 300 files, made and removed for every test. On ext4 without a
// journal that took 40 to 250 ms, the more the more had just been removed; in
// memory it takes 7.
func memoryFolder() string {
	const (
		folder = "/dev/shm"
		room   = 2 << 30
	)
	var stat syscall.Statfs_t
	if err := syscall.Statfs(folder, &stat); err != nil {
		return ""
	}
	if stat.Bavail*uint64(stat.Bsize) < room || syscall.Access(folder, 0o2) != nil {
		return ""
	}
	return folder
}
