package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// launcher starts guests for a server until that goes away. It is small, so
// that it forks fast.
func launcher() {
	unix.CloseOnExec(boot.LauncherFD)
	signal.Ignore(unix.SIGCHLD) // guests that end leave no zombies
	network()
	for {
		message, fds, err := receive(boot.LauncherFD, boot.LaunchSize)
		if err == unix.EINTR {
			continue
		}
		if err != nil || len(message) == 0 {
			os.Exit(0)
		}
		l, err := boot.ParseLaunch(message, len(fds))
		if err != nil {
			os.Exit(1)
		}
		pid, pidfd, err := launch(l, fds)
		var answer boot.Launched
		var rights []byte
		if err != nil {
			answer.Errno = uint32(unix.EIO)
			var errno syscall.Errno
			if errors.As(err, &errno) {
				answer.Errno = uint32(errno)
			}
		} else {
			answer.PID = uint32(pid)
			rights = unix.UnixRights(pidfd)
		}
		if unix.Sendmsg(boot.LauncherFD, answer.Append(nil), rights, nil, unix.MSG_NOSIGNAL) != nil {
			os.Exit(0)
		}
		// The server goes on with the guest meanwhile.
		if pass(l.Doors(fds)[l.In:]) != nil {
			os.Exit(1) // not where it was: the server starts another one
		}
		if unix.Sendmsg(boot.LauncherFD, []byte{boot.Left}, nil, nil, unix.MSG_NOSIGNAL) != nil {
			os.Exit(0)
		}
		if err == nil {
			unix.Close(pidfd)
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		rest()
		network()
	}
}

// rest waits until the guest has started, or another one is asked for: making a
// network would keep a processor from it.
func rest() {
	const enough = 10 // milliseconds
	unix.Poll([]unix.PollFd{{Fd: boot.LauncherFD, Events: unix.POLLIN}}, enough)
}

// network moves the calling thread, which guests descend from, into a new
// network with nothing but a loopback device: that of the next guest. It takes
// as long as all the other namespaces together, so it is made ahead. Since it
// belongs to no user namespace of a guest's, nobody inside can change it.
func network() {
	if unix.Unshare(unix.CLONE_NEWNET) != nil || loopback() != nil {
		os.Exit(1) // the server starts another one
	}
}

// loopback brings the only network interface up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// launch starts a guest in namespaces of its own, inside the environment's
// control groups from its first instruction on. The caller leaves those.
func launch(l boot.Launch, fds []int) (pid, pidfd int, err error) {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(l.UIDBase), Size: 65536}}
	attr := &syscall.SysProcAttr{
		// The cgroup namespace is made by the guest: made here, it would
		// begin at this process's group.
		// The network is there already.
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Setsid:     true,
		PidFD:      &pidfd,
	}
	if l.Group {
		attr.UseCgroupFD, attr.CgroupFD = true, fds[boot.LaunchGroups]
	}
	if err := pass(l.Doors(fds)[:l.In]); err != nil {
		return 0, -1, err
	}
	owner := asOwner(l.UIDBase, func() {
		pid, err = syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(fds[boot.LaunchProgram]), []string{boot.GuestName, l.Name}, &syscall.ProcAttr{
			Dir: "/",
			Env: []string{"GOMAXPROCS=1", "GOTRACEBACK=single"},
			Files: []uintptr{
				0, uintptr(fds[boot.LaunchLog]), uintptr(fds[boot.LaunchLog]), uintptr(fds[boot.LaunchBoot]),
			},
			Sys: attr,
		})
	})
	if owner != nil {
		os.Exit(1) // not who it was: the server starts another one
	}
	return pid, pidfd, err
}

// pass moves the calling thread through tasks files.
func pass(doors []int) error {
	for _, fd := range doors {
		if _, err := unix.Write(fd, []byte("0")); err != nil {
			return err
		}
	}
	return nil
}

// asOwner runs f with another effective user and all powers. The kernel
// counts what a user namespace uses of some things, inotify instances among
// them, against the user who made it: were that root, one environment could
// use up what root and all the others have.
func asOwner(id uint32, f func()) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	become := func(id uint32) error {
		const keep = ^uintptr(0)
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(id), keep); errno != 0 {
			return errno
		}
		return unix.Capset(&header, &caps[0]) // taken away with root's id
	}
	if err := become(id); err != nil {
		return err
	}
	f()
	return become(0)
}
