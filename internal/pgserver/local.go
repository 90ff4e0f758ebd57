//go:build unix

package pgserver

import (
	"context"
	"crypto/rand"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

//go:embed supervise.sh
var supervise string

// portTries bounds how often a server is started again because its port, free
// when it was chosen, was taken when the server came to listen on it.
const portTries = 5

// startTimeout covers initdb and the server's start on a busy machine; both
// together take less than a second on an idle one.
const startTimeout = time.Minute

var errPortTaken = errors.New("its port was taken by another process")

// Local is a server that StartLocal started, with its processes at hand.
type Local struct {
	*Server
	// Name is what a server that it follows calls it, as in
	// synchronous_standby_names.
	Name string

	cluster *cluster
}

// StartLocal starts a throw-away server from this machine's own binaries, of
// the caller's own. Nil options mean all defaults. Without binaries it is
// ErrNoBinaries.
func StartLocal(ctx context.Context, opts *LocalOptions) (*Local, error) {
	binaries, err := findBinaries(ctx)
	if err != nil {
		return nil, err
	}
	return startFrom(ctx, binaries, opts)
}

// startFetched starts a throw-away server from binaries that were fetched.
func startFetched(ctx context.Context, binaries string) (*Server, error) {
	local, err := startFrom(ctx, binaries, nil)
	if err != nil {
		return nil, err
	}
	return local.Server, nil
}

func startFrom(ctx context.Context, binaries string, opts *LocalOptions) (*Local, error) {
	if opts == nil {
		opts = &LocalOptions{}
	}
	if opts.Primary != nil && !hasPrograms(binaries, "pg_basebackup") {
		return nil, fmt.Errorf("%w with a pg_basebackup, which copies a standby's data, in %s", ErrNoBinaries, binaries)
	}
	owner, err := serverOwner()
	if err != nil {
		return nil, err
	}
	return startCluster(ctx, binaries, owner, opts)
}

// serverOwner returns the user to run the server as: nil for this process's
// own. PostgreSQL refuses to run as root.
func serverOwner() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(found.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(found.Gid, 10, 32)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as: " +
		"run this as another user")
}

// startCluster starts a server from the given binaries, as owner.
func startCluster(ctx context.Context, binaries string, owner *syscall.Credential, opts *LocalOptions) (*Local, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	for range portTries {
		var c *cluster
		if c, err = launch(ctx, binaries, owner, opts); err != nil {
			return nil, err
		}
		if err = c.ready(ctx); err == nil {
			server := &Server{URL: c.url, From: "from local binaries in " + binaries, Temporary: true, binaries: binaries, stop: c.stop}
			return &Local{Server: server, Name: c.name, cluster: c}, nil
		}
		err = errors.Join(err, c.stop(context.WithoutCancel(ctx)))
		if !errors.Is(err, errPortTaken) {
			break
		}
	}
	return nil, fmt.Errorf("the server from %s did not start: %w", binaries, err)
}

// cluster is a server and the shell that watches over it.
type cluster struct {
	url    string
	name   string
	folder string
	owner  *syscall.Credential
	// restart is LocalOptions.Restart.
	restart bool
	// alive is our end of the supervisor's standard input. The supervisor
	// stops the server when it closes, so it must be kept from the collector.
	alive *os.File
	// log is what initdb and the server printed. It stays readable after the
	// supervisor has removed the folder it lies in.
	log    *os.File
	exited chan struct{}
}

// launch starts a supervisor with initdb and a server under it. The folder it
// makes is the supervisor's to remove from then on.
func launch(ctx context.Context, binaries string, owner *syscall.Credential, opts *LocalOptions) (_ *cluster, err error) {
	parent := ""
	if os.Getenv("TMPDIR") == "" {
		parent = memoryFolder()
	}
	folder, err := os.MkdirTemp(parent, "samecommit-postgres-")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the server: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()

	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	c := &cluster{
		url:     fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", rand.Text(), port),
		name:    fmt.Sprintf("samecommit_%d", port),
		folder:  folder,
		owner:   owner,
		restart: opts.Restart,
		exited:  make(chan struct{}),
	}
	if err := c.give(folder); err != nil {
		return nil, err
	}
	if opts.Primary == nil {
		err = c.handPassword()
	} else {
		err = c.handPrimary(opts.Primary.cluster)
	}
	if err != nil {
		return nil, err
	}
	if c.log, err = os.Create(filepath.Join(folder, "log")); err != nil {
		return nil, fmt.Errorf("make the server's log: %w", err)
	}
	var stdin *os.File
	if stdin, c.alive, err = os.Pipe(); err != nil {
		return nil, errors.Join(err, c.log.Close())
	}

	restart := ""
	if c.restart {
		restart = "restart"
	}
	args := []string{
		"-c", supervise, "supervise.sh", folder, binaries, restart,
		"-c", "listen_addresses=127.0.0.1",
		"-c", "port=" + strconv.Itoa(port),
		// A socket file needs a folder that exists everywhere and a short path.
		"-c", "unix_socket_directories=",
		// The data does not outlive the server: surviving a power cut is waste.
		"-c", "fsync=off",
		// Many tests at once, each with a pool of its own.
		"-c", "max_connections=500",
		// None by default; tests prepare transactions.
		"-c", "max_prepared_transactions=20",
	}
	for _, setting := range opts.Settings {
		args = append(args, "-c", setting) // the last one counts
	}
	// The server outlives ctx, which bounds its start.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "/bin/sh", args...)
	cmd.Dir = "/" // the server's user may not enter ours
	cmd.Env = serverEnviron(os.Environ())
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, c.log, c.log
	// A session of its own: ctrl-C in the terminal must reach this process
	// only, which then ends, and the server after it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: owner}
	err = cmd.Start()
	// The child has its own copy; ours would leak.
	err = errors.Join(err, stdin.Close())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the server's supervisor: %w", err), c.alive.Close(), c.log.Close())
	}
	go func() {
		// How the supervisor ended says nothing that the log does not.
		_ = cmd.Wait()
		close(c.exited)
	}()
	return c, nil
}

// hand writes a file in the server's folder that its supervisor reads.
func (c *cluster) hand(name, text string) error {
	path := filepath.Join(c.folder, name)
	if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("hand %s to the server's supervisor: %w", name, err)
	}
	return c.give(path)
}

// handPassword lets the supervisor make a server with the password of our URL.
func (c *cluster) handPassword() error {
	parsed, err := url.Parse(c.url)
	if err != nil {
		return err
	}
	password, _ := parsed.User.Password()
	return c.hand("password", password)
}

// give makes a file or folder the server's user's.
func (c *cluster) give(path string) error {
	if c.owner == nil {
		return nil
	}
	if err := os.Chown(path, int(c.owner.Uid), int(c.owner.Gid)); err != nil {
		return fmt.Errorf("give %s to the server's user: %w", path, err)
	}
	return nil
}

// ready waits until the server answers.
func (c *cluster) ready(ctx context.Context) error {
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, err := serverVersion(ctx, c.url); err == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-c.exited:
			log := c.logTail()
			if strings.Contains(log, "could not bind") {
				return fmt.Errorf("%w; its log ends:\n%s", errPortTaken, log)
			}
			return fmt.Errorf("it ended at once; its log ends:\n%s", log)
		case <-ctx.Done():
			return fmt.Errorf("it did not answer in time: %w; its log ends:\n%s", ctx.Err(), c.logTail())
		}
	}
}

// stop ends the server and waits until its folder is gone.
func (c *cluster) stop(ctx context.Context) error {
	err := errors.Join(c.alive.Close(), c.log.Close())
	select {
	case <-c.exited:
		// Normally gone already. The server's user cannot remove it from a
		// folder where only we may.
		return errors.Join(err, os.RemoveAll(c.folder))
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("the server was told to stop and still runs: %w", ctx.Err()))
	}
}

// logTail returns the last lines of the server's log.
func (c *cluster) logTail() string {
	const tail = 4096
	info, err := c.log.Stat()
	if err != nil {
		return fmt.Sprintf("(unreadable: %v)", err)
	}
	text := make([]byte, min(info.Size(), tail))
	n, err := c.log.ReadAt(text, info.Size()-int64(len(text)))
	if n < len(text) {
		return fmt.Sprintf("%s (unreadable from here: %v)", text[:n], err)
	}
	return strings.TrimSpace(string(text))
}

// freePort returns a loopback port that nobody listens on right now.
func freePort(ctx context.Context) (int, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

// serverEnviron drops what would change initdb and the server behind our back:
// PGDATA, PGPORT, PGOPTIONS and the language of messages.
func serverEnviron(environ []string) []string {
	var kept []string
	for _, entry := range environ {
		if !strings.HasPrefix(entry, "PG") && !strings.HasPrefix(entry, "LC_") {
			kept = append(kept, entry)
		}
	}
	return append(kept, "LC_ALL=C")
}
