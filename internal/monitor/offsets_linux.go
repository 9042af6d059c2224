package monitor

import (
	"fmt"

	"github.com/cilium/ebpf/btf"
)

// offsets are where this kernel keeps what the program reads, in bytes.
type offsets struct {
	parent, tgid, mm int32 // in struct task_struct
	argStart, argEnd int32 // in struct mm_struct
}

// findOffsets reads them from the kernel's description of its types.
func findOffsets() (offsets, error) {
	kernel, err := btf.LoadKernelSpec()
	if err != nil {
		return offsets{}, err
	}
	var o offsets
	for _, f := range []struct {
		in, name string
		to       *int32
	}{
		{"task_struct", "real_parent", &o.parent}, {"task_struct", "tgid", &o.tgid}, {"task_struct", "mm", &o.mm},
		{"mm_struct", "arg_start", &o.argStart}, {"mm_struct", "arg_end", &o.argEnd},
	} {
		var s *btf.Struct
		if err := kernel.TypeByName(f.in, &s); err != nil {
			return offsets{}, err
		}
		bits, ok := find(s.Members, f.name)
		if !ok || bits%8 != 0 {
			return offsets{}, fmt.Errorf("struct %s has no %s", f.in, f.name)
		}
		*f.to = int32(bits / 8)
	}
	return o, nil
}

// find returns the offset of a member, also of one of a nameless struct or
// union among the members.
func find(members []btf.Member, name string) (bits btf.Bits, ok bool) {
	for _, m := range members {
		if m.Name == name {
			return m.Offset, true
		}
		if m.Name != "" {
			continue
		}
		var inner []btf.Member
		switch t := btf.UnderlyingType(m.Type).(type) {
		case *btf.Struct:
			inner = t.Members
		case *btf.Union:
			inner = t.Members
		}
		if bits, ok := find(inner, name); ok {
			return m.Offset + bits, true
		}
	}
	return 0, false
}
