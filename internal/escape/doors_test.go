//go:build linux

package escape

import "golang.org/x/sys/unix"

// control says where a probe must find its door open.
type control int

const (
	asRoot      control = iota // root, in a mount namespace to throw away
	asAlone                    // root, in namespaces to throw away of every kind but user
	asUser                     // a user without privileges
	asMounted                  // root, where the directory outside is a mount, read-only in part
	asNeighbour                // in the environment beside, to which the thing belongs
	asNetwork                  // root, in a network that answers at the addresses asked for
)

// door is one row of the suite's table. Words in braces stand for what is
// outside; see world.
type door struct {
	name    string // of the probe
	as      string // of the row, where a probe serves several
	args    string // for both
	in, out string // and only inside, only outside
	control control
	tty     bool // on a terminal
	nested  bool // must stay shut for root of a user namespace inside
	// lacking is what the control reports where the kernel was built without
	// the feature: then there is no door.
	lacking string
	// emulated says why the door may stand open under gVisor: it leads into
	// the user-space kernel and not out of it.
	emulated string
}

const own = "the user-space kernel's own, separate for each sandbox"

var doors = []door{
	// Files outside the volume.
	{name: "host-file-read", args: "-path {secret} -marker {marker}", control: asUser, nested: true},
	{name: "host-file-write", args: "-path {open} -marker {marker}", control: asUser, nested: true},
	{name: "host-file-read", as: "other-environment-file", args: "-marker {marker-b}", in: "-path {file-b}", out: "-path {file-b-host}", control: asRoot, nested: true},
	{name: "host-file-read", as: "state-directory", args: "-path {file-b-host} -marker {marker-b}", control: asRoot},
	{name: "inherited-fds", args: "-path {secret} -marker {marker}", control: asUser},
	{name: "chroot-escape", args: "-path {secret} -marker {marker}", control: asRoot, nested: true},
	{name: "planted-symlink", args: "-path {secret} -marker {marker}", control: asUser},
	{name: "planted-device", in: "-path /probe/device", out: "-path {device}", control: asRoot, nested: true},
	{name: "hardlink-host-file", in: "-path /usr/bin/env", out: "-path {hardlink}", control: asRoot, nested: true},
	{name: "read-only-binds", out: "-path {dir}", control: asRoot, nested: true},
	{name: "open-by-handle", control: asRoot, nested: true},
	{name: "trusted-xattr", control: asRoot, emulated: "kept to the volume's own files, and refused for the overlay's names"},
	{name: "host-shm", args: "-name {name}", control: asUser},
	{name: "host-tmp", args: "-name {name}", control: asUser},
	{name: "host-mqueue", args: "-name {name}", control: asRoot},
	{name: "host-sysv-shm", args: "-count {shmkey}", control: asRoot},
	{name: "host-name", args: "-name {hostname}", control: asUser},

	// Processes outside, and the guest.
	{name: "see-process", args: "-marker {marker}", control: asUser, nested: true},
	{name: "see-process", as: "other-environment-process", args: "-marker {marker-b}", control: asNeighbour, nested: true},
	{name: "signal-process", args: "-pid {victim} -marker {marker}", control: asRoot, nested: true},
	{name: "kill-init", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "ptrace", as: "ptrace-guest", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-vm-read", as: "guest-memory-read", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-mem", as: "guest-memory-write", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-environ", as: "guest-environment", args: "-marker =", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-fds", as: "guest-descriptors", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-root", as: "guest-root", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "process-exe", as: "guest-program", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "pidfd-getfd", as: "guest-descriptor-theft", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "setns", in: "-pid 1", out: "-pid {alone}", control: asRoot},
	{name: "inherited-env", as: "server-environment", args: "-marker {marker}", control: asRoot, nested: true},
	{name: "oom-score", in: "-pid 1", out: "-pid {victim}", control: asRoot, nested: true},
	{name: "realtime", control: asRoot, emulated: own, nested: true},
	{name: "process-priority", control: asRoot, emulated: own},

	// Sockets and networks outside.
	{name: "host-socket", args: "-path {socket}", control: asRoot, nested: true},
	{name: "abstract-socket", args: "-name {name}", control: asUser, nested: true},
	{name: "known-sockets", args: "-path {socket}", control: asRoot, nested: true},
	{name: "listed-sockets", as: "guest-socket", control: asUser},
	{name: "imds", control: asNetwork, nested: true},
	{name: "host-loopback", args: "-addr {tcp}", control: asUser, nested: true},
	{name: "host-loopback", as: "host-loopback-6", args: "-addr {tcp6}", control: asUser, lacking: unix.EADDRNOTAVAIL.Error(), nested: true},
	{name: "host-address", args: "-addr {address}", control: asUser, nested: true},
	{name: "dns", args: "-addr 192.0.2.53:53", control: asNetwork, nested: true},
	{name: "other-interfaces", control: asUser},
	{name: "raw-socket", control: asAlone},
	{name: "packet-socket", control: asAlone},
	{name: "vsock-socket", control: asRoot, lacking: unix.EAFNOSUPPORT.Error(), nested: true},
	{name: "alg-socket", control: asRoot, lacking: unix.EAFNOSUPPORT.Error(), nested: true},
	{name: "xdp-socket", control: asRoot, lacking: unix.EAFNOSUPPORT.Error(), nested: true},
	{name: "netfilter", control: asAlone, lacking: unix.EPROTONOSUPPORT.Error()},
	{name: "audit", control: asRoot, lacking: unix.EPROTONOSUPPORT.Error(), nested: true},
	{name: "uevents", control: asUser, emulated: own},
	{name: "add-address", control: asAlone},

	// The kernel's knobs, devices and dangerous calls.
	{name: "sysrq", control: asRoot, lacking: unix.ENOENT.Error(), nested: true},
	{name: "core-pattern", control: asRoot, nested: true},
	{name: "modprobe-path", control: asRoot, lacking: unix.ENOENT.Error(), nested: true},
	{name: "hotplug", control: asRoot, lacking: unix.ENOENT.Error(), nested: true},
	{name: "binfmt-misc", control: asRoot, lacking: unix.ENOENT.Error(), nested: true},
	{name: "proc-sys", control: asRoot},
	{name: "sysfs-write", control: asRoot, nested: true},
	{name: "sysfs-read", control: asUser},
	{name: "kernel-memory", control: asRoot, nested: true},
	{name: "kernel-log", control: asRoot, emulated: "messages that the user-space kernel makes up", nested: true},
	{name: "kernel-addresses", control: asRoot, nested: true},
	{name: "kernel-keys", args: "-name {name}", control: asRoot, nested: true},
	{name: "device-nodes", control: asRoot, emulated: own, nested: true},
	{name: "mknod", control: asRoot, nested: true},
	{name: "console", control: asRoot, nested: true},
	{name: "bpf", control: asRoot, nested: true},
	{name: "perf", control: asRoot, nested: true},
	{name: "userfaultfd", control: asRoot, nested: true},
	{name: "io-uring", control: asUser, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "kexec", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "module-load", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "module-unload", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "reboot", control: asRoot, nested: true},
	{name: "swap", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "accounting", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "fanotify", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "clock", control: asRoot, nested: true},
	{name: "hostname", control: asAlone},
	{name: "keyring", control: asUser, emulated: own, nested: true},
	{name: "host-key", args: "-name {name}", control: asRoot, nested: true},
	{name: "io-ports", control: asRoot, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "personality", control: asUser, emulated: own},

	// Mounts and namespaces.
	{name: "mount", control: asRoot},
	{name: "mount-new-api", control: asRoot},
	{name: "open-tree", control: asRoot},
	{name: "remount-writable", args: "-path {read-only}", control: asMounted, nested: true},
	{name: "unmount", control: asRoot, nested: true},
	{name: "pivot-root", control: asRoot},
	{name: "release-agent", control: asRoot, lacking: unix.ENODEV.Error(), nested: true},
	{name: "user-namespace", control: asUser, emulated: own},
	{name: "user-namespace-3", control: asUser, emulated: own},
	{name: "other-namespaces", control: asRoot},
	{name: "mount-in-own-namespace", args: "-userns -pidns", control: asUser, emulated: own},

	// Privileges.
	{name: "setuid-file", in: "-path /probe/setuid", out: "-path {setuid}", control: asUser},
	{name: "capability-file", in: "-path /probe/capable", out: "-path {capable}", control: asUser},
	{name: "become-root", control: asRoot},
	{name: "capabilities", control: asRoot},
	{name: "no-new-privileges", control: asUser},
	{name: "no-filter", control: asUser, emulated: "the filter is around the user-space kernel, which is what the program calls"},
	{name: "i386-calls", control: asUser, lacking: "SIGSEGV", nested: true},
	{name: "x32-calls", control: asUser, lacking: unix.ENOSYS.Error(), nested: true},
	{name: "inject-input", control: asRoot, tty: true},
}
