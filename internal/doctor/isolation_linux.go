package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// base is the first of the host ids that the probes use; no file gets them.
const base = 1 << 28

// namespaces are those of an environment.
const namespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// child is a process that waits until it is closed.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

// startChild starts a process that reads its standard input.
func startChild(ctx context.Context, attr *syscall.SysProcAttr) (*child, error) {
	cmd := exec.CommandContext(ctx, "cat")
	cmd.SysProcAttr = attr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		stdin.Close()
		return nil, err
	}
	return &child{cmd, stdin}, nil
}

func (c *child) close() error {
	c.stdin.Close()
	return c.cmd.Wait()
}

func namespaced() *syscall.SysProcAttr {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: 65536}}
	return &syscall.SysProcAttr{
		Cloneflags:  namespaces,
		UidMappings: ids,
		GidMappings: ids,
		Credential:  &syscall.Credential{Uid: 0, Gid: 0},
	}
}

const allowUserns = "sysctl -w user.max_user_namespaces=65536"

func userNamespaces(ctx context.Context, _ string) Finding {
	if os.Geteuid() != 0 {
		return degraded("sudo mayfly doctor", "only root can tell")
	}
	c, err := startChild(ctx, namespaced())
	if err != nil {
		return missing(allowUserns, "a process in namespaces of its own cannot be started").because(err)
	}
	if err := c.close(); err != nil {
		return missing(allowUserns, "a process in namespaces of its own ended badly").because(err)
	}
	return good("user, mount, pid, net, ipc, uts and cgroup namespaces work")
}

func overlay(ctx context.Context, _ string) Finding {
	if os.Geteuid() != 0 {
		return degraded("sudo mayfly doctor", "only root can tell")
	}
	c, err := startChild(ctx, namespaced())
	if err != nil {
		return missing(allowUserns, "it needs a user namespace").because(err)
	}
	defer c.close()
	userns, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", c.cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return missing("", "a user namespace cannot be opened").because(err)
	}
	defer unix.Close(userns)
	if err := tryOverlay(userns); err != nil {
		return missing("modprobe overlay", "no overlay on id-mapped layers can be assembled").because(err)
	}
	return good("id-mapped layers, volatile, redirected directories")
}

// tryOverlay assembles an overlay in memory, mounted nowhere, and makes a
// directory in it.
func tryOverlay(userns int) error {
	layers, err := mappedTmpfs(userns)
	if err != nil {
		return err
	}
	defer unix.Close(layers)
	done := make(chan error, 1)
	go func() {
		// The thread takes other ids, so that it must not be used again: it
		// ends with this goroutine because it stays locked.
		runtime.LockOSThread()
		done <- assembleOverlay(layers)
	}()
	return <-done
}

// mappedTmpfs makes a file system in memory whose ids are those of userns,
// with the directories of an overlay.
func mappedTmpfs(userns int) (int, error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen tmpfs: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("create tmpfs: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount tmpfs: %w", err)
	}
	for _, dir := range []string{"lower", "upper", "work"} {
		if err := unix.Mkdirat(mnt, dir, 0o755); err != nil {
			unix.Close(mnt)
			return -1, fmt.Errorf("mkdir %s: %w", dir, err)
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
	if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(mnt)
		return -1, fmt.Errorf("map ids: %w", err)
	}
	return mnt, nil
}

func assembleOverlay(layers int) error {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for key, dir := range map[string]string{"lowerdir+": "lower", "upperdir": "upper", "workdir": "work"} {
		fd, err := unix.Openat(layers, dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", dir, err)
		}
		err = unix.FsconfigSetFd(fs, key, fd)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("set %s: %w", key, err)
		}
	}
	if err := unix.FsconfigSetString(fs, "redirect_dir", "on"); err != nil {
		return fmt.Errorf("set redirect_dir: %w", err)
	}
	if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
		return fmt.Errorf("set volatile: %w", err)
	}
	if err := becomeMapped(); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount overlay: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.Mkdirat(mnt, "probe", 0o755); err != nil {
		return fmt.Errorf("write to overlay: %w", err)
	}
	return nil
}

// becomeMapped gives the thread file-system ids that the layers map, without
// which an overlay is read-only. Leaving 0 drops capabilities, which are taken
// again.
func becomeMapped() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if err := unix.Setfsgid(base); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if err := unix.Setfsuid(base); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return nil
}

func seccomp(context.Context, string) Finding {
	for _, a := range []struct {
		name   string
		action uint32
	}{{"errno", unix.SECCOMP_RET_ERRNO}, {"kill", unix.SECCOMP_RET_KILL_PROCESS}} {
		_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&a.action)))
		if errno != 0 {
			return missing("", "the kernel has no seccomp action %q", a.name).because(errno)
		}
	}
	return good("filters can answer with an error and kill")
}

// landlockWanted is the first ABI that also keeps signals and abstract unix
// sockets inside.
const landlockWanted = 6

func landlock(context.Context, string) Finding {
	const bootWith = `boot with landlock in the kernel parameter lsm=`
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case errors.Is(errno, unix.EOPNOTSUPP):
		return degraded(bootWith, "in the kernel, but switched off").because(errno)
	case errno != 0:
		return degraded(bootWith, "not in the kernel").because(errno)
	case abi < landlockWanted:
		return degraded("", "ABI %d: files only; %d also guards signals and sockets", abi, landlockWanted)
	}
	return good("ABI %d", abi)
}

func ebpf(context.Context, string) Finding {
	if os.Geteuid() != 0 {
		return degraded("sudo mayfly doctor", "only root can tell")
	}
	// mov r0, 0; exit
	program := [2]uint64{0xb7, 0x95}
	licence := []byte("GPL\x00")
	attr := struct {
		programType, count       uint32
		instructions, licence    uint64
		logLevel, logSize        uint32
		log                      uint64
		kernelVersion, flags     uint32
		name                     [16]byte
		interfaceIndex, attachTo uint32
	}{
		programType:  unix.BPF_PROG_TYPE_RAW_TRACEPOINT,
		count:        uint32(len(program)),
		instructions: uint64(uintptr(unsafe.Pointer(&program[0]))),
		licence:      uint64(uintptr(unsafe.Pointer(&licence[0]))),
	}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(&licence)
	if errno != 0 {
		return degraded("", "no program can be loaded").because(errno)
	}
	unix.Close(int(fd))
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return degraded("", "programs load, but the kernel's types (BTF) are not there").because(err)
	}
	return good("programs load, and the kernel's types (BTF) are there")
}
