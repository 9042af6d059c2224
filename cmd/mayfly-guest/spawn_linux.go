package main

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/record"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// eager is the oom_score_adj of commands: the kernel kills them before the
// guest when memory runs out.
const eager = "500"

// streams connect the guest and a command.
type streams struct {
	theirs  []int // descriptors 0, 1 and 2 of the command
	input   *os.File
	outputs []*os.File
	streams []byte // to which each output belongs
	tty     *os.File
}

// openStreams makes a terminal or pipes.
func openStreams(q wire.Request) (*streams, error) {
	s := &streams{}
	var err error
	owned(func() {
		if q.TTY {
			err = s.terminal(q.Rows, q.Cols)
		} else {
			err = s.pipes(q.Stdin)
		}
	})
	if err != nil {
		s.closeTheirs()
	}
	return s, err
}

func (s *streams) terminal(rows, cols uint16) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open terminal", err)
	}
	s.tty = os.NewFile(uintptr(master), "terminal")
	s.input, s.outputs, s.streams = s.tty, []*os.File{s.tty}, []byte{record.Stdout}
	if rows == 0 || cols == 0 {
		rows, cols = 24, 80
	}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		return failed("size terminal", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return failed("unlock terminal", err)
	}
	// By its name, only the commands' user may open it.
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return failed("open terminal", errno)
	}
	s.theirs = []int{int(slave), int(slave), int(slave)}
	return nil
}

func (s *streams) pipes(stdin bool) error {
	if stdin {
		p, err := pipe()
		if err != nil {
			return failed("make pipe", err)
		}
		s.theirs = append(s.theirs, p[0])
		s.input = ours(p[1], "stdin")
	} else {
		null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return failed("open /dev/null", err)
		}
		s.theirs = append(s.theirs, null)
	}
	for _, stream := range []byte{record.Stdout, record.Stderr} {
		p, err := pipe()
		if err != nil {
			return failed("make pipe", err)
		}
		s.theirs = append(s.theirs, p[1])
		s.outputs = append(s.outputs, ours(p[0], "output"))
		s.streams = append(s.streams, stream)
	}
	return nil
}

// pipe makes a pipe that the commands' user may open again by name, as
// programs do that write to /dev/stderr.
func pipe() (p [2]int, err error) {
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return p, err
	}
	unix.Fchmod(p[0], 0o666)
	return p, nil
}

// ours makes our end of a pipe one that the runtime can wait for.
func ours(fd int, name string) *os.File {
	unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), name)
}

func (s *streams) closeTheirs() {
	for i, fd := range s.theirs {
		if i == 0 || fd != s.theirs[0] {
			unix.Close(fd)
		}
	}
	s.theirs = nil
}

func (s *streams) closeOurs() {
	if s.input != nil {
		s.input.Close()
	}
	for _, f := range s.outputs {
		f.Close()
	}
}

// Errors of finding out what to execute.
var (
	errNotFound   = errors.New("command not found")
	errNoDir      = errors.New("cannot enter the working directory")
	errNotAllowed = errors.New("cannot execute")
)

// spawn starts the command, on the main thread.
func (w *warden) spawn(r *run, q wire.Request, s *streams) error {
	if q.Dir == "" {
		q.Dir = "/"
	}
	uid, gid, env := w.uid, w.gid, q.Env
	if q.UID != 0 {
		uid, gid = q.UID, q.UID
	} else {
		env = merge(w.env, q.Env)
	}
	var candidates []string
	var err error
	owned(func() { candidates, err = find(uid, gid, q.Argv[0], q.Dir, env) })
	if err != nil {
		return err
	}
	attr := &syscall.ProcAttr{
		Dir: q.Dir, Env: env,
		Files: []uintptr{uintptr(s.theirs[0]), uintptr(s.theirs[1]), uintptr(s.theirs[2])},
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: q.TTY,
			Credential: &syscall.Credential{Uid: uid, Gid: gid},
		},
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	// Children inherit the score; the guest takes it back. Lowering it to
	// what it was needs no capability.
	unix.Pwrite(w.oom, []byte(eager), 0)
	defer unix.Pwrite(w.oom, w.calm, 0)
	for _, path := range candidates {
		pid, e := syscall.ForkExec(path, q.Argv, attr)
		if e == unix.ENOEXEC {
			// A script without its interpreter's name, see execvp(3).
			pid, e = syscall.ForkExec("/bin/sh", append([]string{"sh", path}, q.Argv[1:]...), attr)
		}
		if e == nil {
			r.pid = pid
			w.pids[pid] = r
			w.alive.Signal()
			return nil
		}
		err = &stepError{path, e}
	}
	return err
}

// merge puts the variables of a command over those of the environment.
func merge(base, over []string) []string {
	var env []string
	at := map[string]int{}
	for _, list := range [][]string{base, over} {
		for _, e := range list {
			name, _, _ := strings.Cut(e, "=")
			if i, ok := at[name]; ok {
				env[i] = e
				continue
			}
			at[name] = len(env)
			env = append(env, e)
		}
	}
	return env
}

// find returns the files that may be meant by a command's name, looked up
// with its user's eyes: the guest itself may see less.
func find(uid, gid uint32, name, dir string, env []string) (paths []string, err error) {
	unix.SetfsgidRetGid(int(gid))
	unix.SetfsuidRetUid(int(uid))
	defer unix.SetfsgidRetGid(0)
	defer unix.SetfsuidRetUid(0)
	var st unix.Stat_t
	if err := unix.Stat(dir+"/.", &st); err != nil {
		return nil, &stepError{errNoDir.Error() + " " + dir, errNoDir}
	}
	if strings.Contains(name, "/") {
		path := name
		if path[0] != '/' {
			path = dir + "/" + path
		}
		switch err := unix.Stat(path, &st); {
		case err == unix.ENOENT || err == unix.ENOTDIR:
			return nil, errNotFound
		case err != nil:
			return nil, &stepError{errNotAllowed.Error(), err}
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			return nil, &stepError{errNotAllowed.Error(), unix.EISDIR}
		}
		return []string{path}, nil
	}
	for d := range strings.SplitSeq(pathOf(env), ":") {
		if d == "" || d[0] != '/' {
			d = dir + "/" + d
		}
		path := d + "/" + name
		if unix.Stat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			// One that can be executed comes before those that cannot.
			if st.Mode&0o111 != 0 {
				return append([]string{path}, paths...), nil
			}
			paths = append(paths, path)
		}
	}
	if paths == nil {
		return nil, errNotFound
	}
	return paths, nil
}

func pathOf(env []string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			return v
		}
	}
	return "/usr/local/bin:/usr/bin:/bin"
}

// explain turns the failure to start a command into what shells report.
func explain(q wire.Request, err error) (code int, reason string) {
	if errors.Is(err, errNoDir) {
		return 126, errNoDir.Error() + ": " + q.Dir
	}
	if errors.Is(err, errNotFound) {
		return 127, q.Argv[0] + ": " + errNotFound.Error()
	}
	// A file that is there and still not found lacks its interpreter.
	if errors.Is(err, unix.ENOENT) {
		return 127, err.Error() + " (is its interpreter there?)"
	}
	return 126, err.Error()
}

// session lists the processes of a session.
func session(id int) []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if sid, err := unix.Getsid(pid); err == nil && sid == id {
			pids = append(pids, pid)
		}
	}
	return pids
}
