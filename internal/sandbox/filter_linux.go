package sandbox

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// The seccomp filter denies what no command needs and what has let others out
// of their sandboxes. It is assembled here, once, and loaded by the guest: a
// library would bring tables of every architecture's system calls into a
// program that starts for each command line.
//
// Arguments that the kernel takes as int are compared in their lower half
// only; otherwise a bit in the upper half would get past.

// Offsets in struct seccomp_data.
const (
	dataNumber = 0
	dataArch   = 4
	dataArgs   = 16
)

// namespaces is every flag of clone(2) that makes a namespace.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS |
	unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// program is a list of instructions, see bpf(4) of the BSDs.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf})
}

func (p *program) load(offset uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }

// loadArg loads the lower half of an argument; both architectures are little
// endian.
func (p *program) loadArg(n uint32) { p.load(dataArgs + 8*n) }

func (p *program) allow() { p.add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW, 0, 0) }

func (p *program) fail(e unix.Errno) {
	p.add(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ERRNO|uint32(e), 0, 0)
}

// equal executes the next skip instructions only if the value is k.
func (p *program) equal(k uint32, skip uint8) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, k, 0, skip)
}

// deny makes a system call fail.
func (p *program) deny(e unix.Errno, calls ...uint32) {
	for _, nr := range calls {
		p.equal(nr, 1)
		p.fail(e)
	}
}

// when applies the rules only to one system call. They must end in a decision.
func (p *program) when(nr uint32, rules func(*program)) {
	var body program
	rules(&body)
	p.equal(nr, uint8(len(body)))
	*p = append(*p, body...)
}

// only allows some values of an argument.
func only(arg uint32, e unix.Errno, values ...uint32) func(*program) {
	return func(p *program) {
		p.loadArg(arg)
		for _, v := range values {
			p.equal(v, 1)
			p.allow()
		}
		p.fail(e)
	}
}

// except denies some values of an argument.
func except(arg uint32, e unix.Errno, values ...uint32) func(*program) {
	return func(p *program) {
		p.loadArg(arg)
		for _, v := range values {
			p.equal(v, 1)
			p.fail(e)
		}
		p.allow()
	}
}

// without denies an argument that has any of the bits.
func without(arg uint32, e unix.Errno, bits uint32) func(*program) {
	return func(p *program) {
		p.loadArg(arg)
		p.add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, bits, 0, 1)
		p.fail(e)
		p.allow()
	}
}

// sockets allows local sockets, the Internet's, and the netlink family that
// getifaddrs(3) uses.
func sockets(p *program) {
	p.loadArg(0)
	for _, family := range []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6} {
		p.equal(family, 1)
		p.allow()
	}
	p.equal(unix.AF_NETLINK, 3)
	p.loadArg(2)
	p.equal(unix.NETLINK_ROUTE, 1)
	p.allow()
	p.fail(unix.EAFNOSUPPORT)
}

// filter assembles the filter. With nested, commands may make namespaces and
// mount inside them.
func filter(nested bool) []byte {
	var p program
	p.load(dataArch)
	p.equal(auditArch, 1)
	p.add(unix.BPF_JMP|unix.BPF_JA, 1, 0, 0)
	p.fail(unix.ENOSYS)
	p.load(dataNumber)
	denyABI(&p)
	p.deny(unix.EPERM, always...)
	p.deny(unix.EPERM, foreign...)
	p.deny(unix.ENOSYS, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER)
	if !nested {
		p.deny(unix.EPERM, nesting...)
		p.deny(unix.ENOSYS, unix.SYS_CLONE3) // its flags are in memory; callers fall back to clone
		p.when(unix.SYS_CLONE, without(0, unix.EPERM, namespaces))
		p.when(unix.SYS_UNSHARE, without(0, unix.EPERM, namespaces|unix.CLONE_NEWTIME))
	}
	p.when(unix.SYS_SOCKET, sockets)
	p.when(unix.SYS_SOCKETPAIR, sockets)
	p.when(unix.SYS_IOCTL, except(1, unix.EPERM, unix.TIOCSTI, unix.TIOCLINUX))
	p.when(unix.SYS_PERSONALITY, only(0, unix.EPERM, 0, addrNoRandomize, 0xffffffff))
	p.allow()
	return p.bytes()
}

// addrNoRandomize is what debuggers ask of personality(2).
const addrNoRandomize = 0x0040000

func (p program) bytes() []byte {
	b := make([]byte, 0, 8*len(p))
	for _, i := range p {
		b = binary.LittleEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.LittleEndian.AppendUint32(b, i.K)
	}
	return b
}

// always is denied in every environment.
var always = []uint32{
	// The machine: boot, clock, swap, accounting, kernel log, modules.
	unix.SYS_REBOOT, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE,
	unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_ACCT, unix.SYS_SYSLOG, unix.SYS_VHANGUP,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_NFSSERVCTL,
	// Large and often broken parts of the kernel.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD,
	// Things without a namespace of their own.
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY,
	unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_LOOKUP_DCOOKIE,
	unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK,
	// Where memory lies is the host's affair.
	unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_SET_MEMPOLICY_HOME_NODE,
	unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
}

// nesting is denied where agents make no sandboxes of their own.
var nesting = []uint32{
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_SETNS,
	unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG,
	unix.SYS_FSMOUNT, unix.SYS_FSPICK, unix.SYS_MOUNT_SETATTR, openTreeAttr,
}

// openTreeAttr is open_tree_attr(2) of Linux 6.15, the same number everywhere.
const openTreeAttr = 467
