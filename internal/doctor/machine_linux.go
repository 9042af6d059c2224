package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// probes in the order of the table: what everything needs comes first.
var probes = []probe{
	{"root", "the server, which makes the environments", true, privileges},
	{"kernel", "everything; overlays are assembled from file descriptors", true, kernel},
	{"userns", "isolation: every environment is a user namespace of its own", true, userNamespaces},
	{"overlay", "copy-on-write environments with ids of their own", true, overlay},
	{"cgroup", "limits of CPU, memory and processes; pausing", true, cgroups},
	{"clone", "starting processes without a race: pidfd, CLONE_INTO_CGROUP", false, cloneIntoCgroup},
	{"seccomp", "isolation: forbidden system calls", true, seccomp},
	{"landlock", "isolation: a second lock on files, signals and sockets", false, landlock},
	{"btrfs", "snapshots in constant time", false, btrfs},
	{"loop", "snapshots where the state directory is not on btrfs", false, loopDevices},
	{"reflink", "cheap copies where there is no btrfs", false, reflink},
	{"disk", "the state directory", true, disk},
	{"git", "workspaces from repositories, and apply", false, git},
	{"group", "use by others than root: mayfly's socket belongs to it", false, group},
	{"gvisor", "--isolation gvisor", false, gvisor},
	{"ebpf", "watching system calls (nothing yet)", false, ebpf},
}

// needed are the capabilities that the server uses.
var needed = []struct {
	bit  int
	name string
}{
	{unix.CAP_CHOWN, "chown"}, {unix.CAP_DAC_OVERRIDE, "dac_override"},
	{unix.CAP_FOWNER, "fowner"}, {unix.CAP_FSETID, "fsetid"}, {unix.CAP_KILL, "kill"},
	{unix.CAP_MKNOD, "mknod"}, {unix.CAP_SETUID, "setuid"}, {unix.CAP_SETGID, "setgid"},
	{unix.CAP_SETFCAP, "setfcap"}, {unix.CAP_SYS_ADMIN, "sys_admin"},
	{unix.CAP_SYS_CHROOT, "sys_chroot"}, {unix.CAP_SYS_PTRACE, "sys_ptrace"},
}

func privileges(context.Context, string) Finding {
	if uid := os.Geteuid(); uid != 0 {
		return missing("sudo mayfly serve", "this is uid %d; only root's server can make environments", uid)
	}
	var header = unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return missing("", "capabilities cannot be read").because(err)
	}
	var lacking []string
	for _, c := range needed {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			lacking = append(lacking, c.name)
		}
	}
	if len(lacking) > 0 {
		return missing("", "root, but without the capabilities %s: this is a container with less",
			strings.Join(lacking, ", "))
	}
	// A root that is mapped to another id outside cannot mount what it likes.
	mapped, err := os.ReadFile("/proc/self/uid_map")
	if err == nil && strings.Join(strings.Fields(string(mapped)), " ") != "0 0 4294967295" {
		return missing("", "root of a user namespace only (%s)", strings.Join(strings.Fields(string(mapped)), " "))
	}
	return good("root with the %d capabilities needed", len(needed))
}

// minimum is the first kernel whose overlays take detached mounts as layers.
var minimum = [2]int{6, 13}

func kernel(context.Context, string) Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return missing("", "its version cannot be read").because(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var v [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &v[0], &v[1]); err != nil {
		return degraded("", "Linux %s: a version that I cannot read", release)
	}
	if slices.Compare(v[:], minimum[:]) < 0 {
		return missing("apt-get install -t $(. /etc/os-release; echo $VERSION_CODENAME)-backports linux-image-amd64",
			"Linux %s; %d.%d or newer is needed", release, minimum[0], minimum[1])
	}
	return good("Linux %s", release)
}

func git(ctx context.Context, _ string) Finding {
	path, err := exec.LookPath("git")
	if err != nil {
		return missing("apt-get install git", "no git in PATH")
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return missing("apt-get install --reinstall git", "%s does not run", path).because(err)
	}
	return good("%s", bytes.TrimSpace(out))
}

// Group is the group whose members may use the server's socket.
const Group = "mayfly"

func group(context.Context, string) Finding {
	g, err := user.LookupGroup(Group)
	if err != nil {
		return degraded("groupadd --system mayfly && usermod -aG mayfly $USER",
			"no group %q: only root can talk to the server", Group)
	}
	if os.Geteuid() == 0 {
		return good("members of %s may talk to the server", Group)
	}
	ids, err := os.Getgroups()
	if err == nil && !slices.Contains(ids, atoi(g.Gid)) {
		return degraded("sudo usermod -aG mayfly $USER", "you are no member of %s", Group)
	}
	return good("you are a member of %s", Group)
}

func atoi(s string) int {
	n := -1
	fmt.Sscan(s, &n)
	return n
}

// RunscPlaces are where runsc is looked for after PATH.
var RunscPlaces = []string{"/usr/local/bin/runsc", "/opt/gvisor/bin/runsc"}

const installRunsc = "CGO_ENABLED=0 GOBIN=/usr/local/bin go install gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237"

func gvisor(ctx context.Context, _ string) Finding {
	path, err := exec.LookPath("runsc")
	for _, p := range RunscPlaces {
		if err != nil {
			path, err = exec.LookPath(p)
		}
	}
	if err != nil {
		return missing(installRunsc, "no runsc in PATH, nor in /usr/local/bin or /opt/gvisor/bin")
	}
	// The second process that newer releases start beside the first.
	sentry := filepath.Join(filepath.Dir(path), "gvisor-bin", "gvisor_sentry")
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return missing(installRunsc, "%s does not run", path).because(err)
	}
	version, _, _ := strings.Cut(string(out), "\n")
	version = strings.TrimPrefix(version, "runsc version ")
	if version == "VERSION_MISSING" {
		version = "built from source"
	}
	if _, err := os.Stat(sentry); errors.Is(err, os.ErrNotExist) {
		return good("%s, %s, with its sentry embedded", path, version)
	}
	return good("%s, %s, with gvisor_sentry beside it", path, version)
}
