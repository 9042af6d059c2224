package sandbox

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Redirect implements Redirector with programs that the kernel runs when a
// process of the sandbox connects. They belong to its control group, and go on
// when this process ends.
func (n *Native) Redirect(env string, port uint16, on bool) error {
	group, err := n.cgroups.Directory(env)
	if err != nil {
		return fmt.Errorf("redirect connections: %w", err)
	}
	if group == nil {
		return redirectError(errors.ErrUnsupported)
	}
	defer group.Close()
	for _, hook := range []ebpf.AttachType{ebpf.AttachCGroupInet4Connect, ebpf.AttachCGroupInet6Connect} {
		if err := redirect(int(group.Fd()), hook, port, on); err != nil {
			return redirectError(err)
		}
	}
	return nil
}

func redirect(group int, hook ebpf.AttachType, port uint16, on bool) error {
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "mayfly_redirect", Type: ebpf.CGroupSockAddr, AttachType: hook, License: "GPL", Instructions: onConnect(hook, port),
	})
	if err != nil {
		return err
	}
	defer program.Close()
	if on { // instead of one that is there
		return link.RawAttachProgram(link.RawAttachProgramOptions{Target: group, Program: program, Attach: hook})
	}
	err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: group, Program: program, Attach: hook})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// redirectError explains what a machine lacks.
func redirectError(err error) error {
	for _, reason := range []error{ebpf.ErrNotSupported, fs.ErrNotExist, unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EINVAL, errors.ErrUnsupported} {
		if errors.Is(err, reason) {
			return mayfly.Errorf(mayfly.Unsupported, "connections cannot be redirected: %w", errors.Join(errors.ErrUnsupported, err)).
				Hint("it takes root with CAP_BPF and CAP_NET_ADMIN, Linux 5.8 or newer, and the unified hierarchy of control groups")
		}
	}
	return fmt.Errorf("redirect connections: %w", err)
}

// Offsets in bpf_sock_addr of linux/bpf.h.
const (
	sockAddrIP4  = 4
	sockAddrIP6  = 8
	sockAddrPort = 24
)

// network puts a number into the order of the network.
func network(n uint32) uint32 {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return binary.NativeEndian.Uint32(b[:])
}

// onConnect makes 127.0.0.1:port, also in the form that IPv6 sockets give it,
// 127.0.0.2:port. Addresses and ports are in the order of the network.
func onConnect(hook ebpf.AttachType, port uint16) asm.Instructions {
	var p asm.Instructions
	unless := func(offset int16, value uint32) {
		p = append(p, asm.LoadMem(asm.R2, asm.R1, offset, asm.Word), asm.JNE.Imm32(asm.R2, int32(value), "exit"))
	}
	address := int16(sockAddrIP4)
	if hook == ebpf.AttachCGroupInet6Connect {
		unless(sockAddrIP6, 0)
		unless(sockAddrIP6+4, 0)
		unless(sockAddrIP6+8, network(0xffff))
		address = sockAddrIP6 + 12
	}
	unless(address, network(0x7f000001))
	unless(sockAddrPort, network(uint32(port)<<16)) // its first two bytes
	return append(p,
		asm.Mov.Imm32(asm.R2, int32(network(0x7f000002))),
		asm.StoreMem(asm.R1, address, asm.R2, asm.Word),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("exit"), // let it connect
		asm.Return(),
	)
}
