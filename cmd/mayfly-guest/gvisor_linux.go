package main

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// owned runs f with the commands' user's rights, as far as that takes more
// than the guest does anyway. Under gVisor, pipes and terminals belong to
// whoever makes them, and setfsuid(2) is missing.
var owned = func(f func()) { f() }

// as runs f as another effective user and group, and another real user.
func as(real, uid, gid uint32, f func()) {
	runtime.LockOSThread()
	become := func(real, uid, gid uint32) {
		const keep = ^uintptr(0)
		for _, c := range [][3]uintptr{
			{unix.SYS_SETRESUID, keep, 0}, {unix.SYS_SETRESGID, keep, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(real), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(c[0], c[1], c[2], keep); errno != 0 {
				panic(errno) // neither the one nor the other
			}
		}
	}
	become(real, uid, gid)
	f()
	become(0, 0, 0)
	runtime.UnlockOSThread()
}

// underGVisor is main where gVisor has made the mounts and namespaces.
func underGVisor() {
	w, listener, err := startUnderGVisor()
	if err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	runtime.GOMAXPROCS(2)
	owned = func(f func()) { as(0, w.uid, w.gid, f) }
	go w.reap()
	go w.accept(listener)
	w.fork()
}

func startUnderGVisor() (w *warden, listener int, err error) {
	unix.Umask(0o022)
	c, err := configFile()
	if err != nil {
		return nil, -1, failed("read config", err)
	}
	// What gVisor mounts unasked: an empty /tmp in memory over the volume's,
	// and a made-up description of hardware.
	for _, path := range []string{"/tmp", "/sys"} {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return nil, -1, failed("unmount "+path, err)
		}
	}
	// Devices of gVisor's own that environments do not have.
	for _, path := range []string{"/dev/fuse", "/dev/net/tun"} {
		if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
			return nil, -1, failed("remove "+path, err)
		}
	}
	if err := limitTasks(c); err != nil {
		return nil, -1, failed("limit tasks", err)
	}
	runs, err := unix.Open(boot.RunsDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, failed("open "+boot.RunsDir, err)
	}
	oom, err := unix.Open("/proc/self/oom_score_adj", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, failed("open oom_score_adj", err)
	}
	if listener, err = listen(boot.SocketDir + "/" + boot.Socket); err != nil {
		return nil, -1, failed("listen", err)
	}
	if err := renounce(c); err != nil {
		return nil, -1, err
	}
	return newWarden(c, []int{boot.RootFD: -1, boot.RunsFD: runs, boot.KillsFD: -1}, oom), listener, nil
}

func configFile() (boot.Config, error) {
	buf := make([]byte, boot.MaxConfig+1)
	n := 0
	for n < len(buf) {
		m, err := unix.Read(boot.ConfigFD, buf[n:])
		if err != nil {
			return boot.Config{}, err
		}
		if m == 0 {
			break
		}
		n += m
	}
	unix.Close(boot.ConfigFD)
	if n > boot.MaxConfig {
		return boot.Config{}, boot.ErrMalformed
	}
	return boot.Parse(buf[:n])
}

// reserve is how many tasks of the group are the guest's own.
const reserve = 32

// limitTasks puts the guest, and thus every command, into a control group of
// gVisor's own. It has no limit of tasks per user.
func limitTasks(c boot.Config) error {
	if c.Tasks == 0 {
		return nil
	}
	if err := unix.Mount("cgroup", boot.GroupDir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "pids"); err != nil {
		return err
	}
	const group = boot.GroupDir + "/guest"
	if err := unix.Mkdir(group, 0o700); err != nil {
		return err
	}
	if err := set(group+"/pids.max", strconv.FormatUint(c.Tasks+reserve, 10)); err != nil {
		return err
	}
	return set(group+"/cgroup.procs", "1")
}

func listen(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return -1, err
	}
	return fd, unix.Listen(fd, 128)
}

// renounce gives up what the guest does not need from here on. A seccomp
// filter and Landlock would only guard gVisor's kernel from commands.
func renounce(c boot.Config) error {
	if err := limit(c); err != nil {
		return err
	}
	if err := renounceCapabilities(); err != nil {
		return err
	}
	return failed("set no_new_privs", unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
}

func renounceCapabilities() error {
	for capability := 0; capability <= unix.CAP_LAST_CAP; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		if err != nil && err != unix.EINVAL {
			return failed("drop capability from the bounding set", err)
		}
	}
	return failed("drop capabilities", keep(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL))
}
