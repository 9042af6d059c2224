package sandbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// Names in an environment's host directory.
const (
	socketName = "guest.sock"
	runsName   = "runs"
	logName    = "guest.log" // what a guest said that broke
)

// process is a guest that this process started.
type process struct {
	pidfd *os.File
	words *os.File      // its standard error
	done  chan struct{} // closed when it has ended, or is forgotten
	left  chan struct{} // closed when the launcher is not in its groups any more
	said  []byte        // the beginning of what it wrote there; set before done
}

// forget stops waiting for the process.
func (p *process) forget() { p.pidfd.SetReadDeadline(time.Unix(1, 0)) }

// begun is a guest that has been told what to do and waits for the rest.
type begun struct {
	*process
	conn *os.File // the boot socket; without its other end the guest ends
}

// release ends the conversation. A guest that is not ready ends with it.
func (g *begun) release() {
	g.conn.Close()
	<-g.left
}

// begin starts the guest of a sandbox and tells it what to do. It loads, and
// makes what needs no mount of the server's, while furnish makes those.
func (n *Native) begin(s Spec) (*begun, error) {
	limits, tasks := s.Limits, int64(0)
	if limits.PIDs > 0 {
		tasks = max(limits.PIDs, minTasks)
		// Commands are held to their number by RLIMIT_NPROC, which does not
		// count the guest. A guest that cannot make a thread would break.
		limits.PIDs = tasks + reserve
	}
	if err := n.cgroups.Create(s.Environment, limits); err != nil {
		return nil, err
	}
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	p, err := n.launch(s, theirs)
	theirs.Close()
	if err == nil {
		conn.SetDeadline(time.Now().Add(startTimeout))
		err = n.tell(conn, s, uint64(tasks))
	}
	if err != nil {
		conn.Close()
		if p != nil {
			<-p.left
		}
		return nil, err
	}
	return &begun{p, conn}, nil
}

// furnish makes what a guest lacks that has begun, that which needs none of its
// namespaces while it still begins, and waits until the guest is ready.
func (n *Native) furnish(ctx context.Context, s Spec, p *prepared) error {
	if err := prepareHost(s); err != nil {
		return err
	}
	listener, err := listen(s.Host)
	if err != nil {
		return err
	}
	defer unix.Close(listener)
	m, err := show(s)
	if err != nil {
		return err
	}
	defer m.close()
	g, err := p.wait()
	if err != nil {
		return err
	}
	defer g.release()
	g.conn.SetDeadline(time.Time{})
	defer context.AfterFunc(ctx, func() { g.conn.SetDeadline(time.Unix(1, 0)) })()
	if err = n.hand(s, g, listener, m); err == nil {
		err = hear(g.conn)
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return fmt.Errorf("boot guest: %w%s", err, g.heard())
}

// hand makes the other mounts, and sends the guest all that it gets as
// descriptors.
func (n *Native) hand(s Spec, g *begun, listener int, m *mounts) error {
	if err := m.assemble(s, g.pidfd); err != nil {
		return err
	}
	kills, err := n.cgroups.OpenKills(s.Environment)
	if err != nil {
		return err
	}
	defer kills.Close()
	fds := append([]int{m.root, m.runs, int(kills.Fd()), listener}, m.binds...)
	if _, err := sendRights(g.conn, []byte{boot.Mounts}, fds); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	return nil
}

// tell sends the config.
func (n *Native) tell(conn *os.File, s Spec, tasks uint64) error {
	nested := 0
	if s.Nested {
		nested = 1
	}
	c := boot.Config{
		Hostname: Hostname, Nested: s.Nested, UID: UID, GID: GID, Tasks: tasks,
		SharedMemory: sharedMemory(s.Limits.Memory), Filter: n.filters[nested],
		Env: s.Env, Binds: s.targets(),
	}
	b := boot.Append(make([]byte, 4), c)
	if len(b) > boot.MaxConfig {
		return mayfly.Errorf(mayfly.Invalid, "the environment's variables take %d bytes, %d at most", len(b), boot.MaxConfig)
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	if _, err := conn.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
		return err
	}
	return nil
}

// hear waits for the guest's answer.
func hear(conn *os.File) error {
	answer, err := io.ReadAll(io.LimitReader(conn, 4096))
	switch {
	case len(answer) > 0 && answer[0] == boot.Ready:
		return nil
	case len(answer) > 0 && answer[0] == boot.Failed:
		return fmt.Errorf("%q", answer[1:])
	case err != nil:
		return err
	}
	return errors.New("the guest ended before it was ready")
}

// sharedMemory is the size of /dev/shm: it counts as memory, so it may be
// large, but not all there is.
func sharedMemory(memory int64) uint64 {
	if memory <= 0 {
		return 1 << 30
	}
	return uint64(max(memory/2, 1<<20))
}

// prepareHost makes the directory that the guest writes to, and a new work
// directory: the kernel refuses one that a volatile overlay left behind.
func prepareHost(s Spec) error {
	if err := os.Mkdir(filepath.Join(s.Host, runsName), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("prepare host directory: %w", err)
	}
	err := unix.Rmdir(s.Work) // at the first start it is empty
	if err != nil && err != unix.ENOENT {
		err = os.RemoveAll(s.Work)
	}
	if err != nil && err != unix.ENOENT {
		return fmt.Errorf("remove old work directory: %w", err)
	}
	if err := os.Mkdir(s.Work, 0o700); err != nil {
		return fmt.Errorf("make work directory: %w", err)
	}
	return nil
}

// socketPath returns a short name of the guest's socket, valid while dir is
// open: socket addresses hold 107 bytes.
func socketPath(host string) (path string, dir *os.File, err error) {
	dir, err = os.OpenFile(host, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	return "/proc/self/fd/" + strconv.Itoa(int(dir.Fd())) + "/" + socketName, dir, nil
}

// listen binds the guest's socket. It holds no reference to anything of this
// process, so that the guest is its only owner.
func listen(host string) (int, error) {
	path, dir, err := socketPath(host)
	if err != nil {
		return -1, fmt.Errorf("listen for the guest: %w", err)
	}
	defer dir.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("listen for the guest: %w", err)
	}
	if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
		unix.Close(fd)
		return -1, fmt.Errorf("remove the former guest's socket: %w", err)
	}
	err = unix.Fchmod(fd, 0o600) // decides the mode of the name to come
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen for the guest: %w", err)
	}
	return fd, nil
}

func socketpair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make boot socket: %w", err)
	}
	unix.SetNonblock(fds[0], true)
	return os.NewFile(uintptr(fds[0]), "boot"), os.NewFile(uintptr(fds[1]), "boot"), nil
}

// launch starts the guest.
func (n *Native) launch(s Spec, bootSocket *os.File) (p *process, err error) {
	memory, err := unix.MemfdCreate("guest-words", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, fmt.Errorf("make guest log: %w", err)
	}
	words := os.NewFile(uintptr(memory), logName)
	defer func() {
		if err != nil {
			words.Close()
		}
	}()
	group, err := n.cgroups.Directory(s.Environment)
	if err != nil {
		return nil, fmt.Errorf("open control group: %w", err)
	}
	defer group.Close()
	in, out, err := n.cgroups.Doors(s.Environment)
	if err != nil {
		return nil, err
	}
	files := []*os.File{}
	if group != nil {
		files = append(files, group)
	}
	files = append(append(files, in...), out...)
	fds := []int{memory, int(bootSocket.Fd()), int(n.guest.Fd())}
	for _, f := range files {
		defer f.Close()
		fds = append(fds, int(f.Fd()))
	}
	p, err = n.ask(boot.Launch{UIDBase: s.UIDBase, Group: group != nil, In: len(in), Out: len(out), Name: s.Environment}, fds)
	if err != nil {
		return nil, fmt.Errorf("start guest: %w", err)
	}
	p.words = words
	n.adopt(s, p)
	return p, nil
}

// adopt waits for the guest's end, without a thread of its own, and keeps
// what it said.
func (n *Native) adopt(s Spec, p *process) {
	env := s.Environment
	n.mu.Lock()
	n.guests[env] = p
	n.mu.Unlock()
	n.reapers.Go(func() {
		defer close(p.done)
		defer p.pidfd.Close()
		defer p.words.Close()
		if raw, err := p.pidfd.SyscallConn(); err == nil {
			raw.Read(func(fd uintptr) bool { return ended(int(fd)) })
		}
		if p.said = p.read(); len(p.said) > 0 {
			os.WriteFile(filepath.Join(s.Host, logName), p.said, 0o600) // there is nobody to tell if that fails
		}
		n.mu.Lock()
		if n.guests[env] == p {
			delete(n.guests, env)
		}
		n.mu.Unlock()
	})
}

// ended reports whether the process of a pidfd has ended.
func ended(pidfd int) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return n > 0 && err == nil
}

// sendRights sends the beginning of b together with descriptors.
func sendRights(conn *os.File, b []byte, fds []int) (sent int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	werr := raw.Write(func(fd uintptr) bool {
		sent, err = unix.SendmsgN(int(fd), b, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return sent, errors.Join(err, werr)
}

// heard waits a moment for a guest that broke to end, and returns what it
// said, for an error message.
func (p *process) heard() string {
	select {
	case <-p.done:
		return quoted(p.said)
	case <-time.After(time.Second):
		return quoted(p.read())
	}
}

// read returns the beginning of what the guest wrote to its standard error,
// which is nothing unless it broke.
func (p *process) read() []byte {
	b := make([]byte, 32<<10)
	n, _ := p.words.ReadAt(b, 0)
	return b[:n]
}

// lastWords returns what a guest left in its log, for an error message.
func lastWords(host string) string {
	f, err := os.OpenFile(filepath.Join(host, logName), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, 1024))
	return quoted(b)
}

func quoted(words []byte) string {
	if len(words) == 0 {
		return ""
	}
	return fmt.Sprintf(" (%q)", words[:min(len(words), 1024)])
}
