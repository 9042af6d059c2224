package monitor

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Layout of a record, in the machine's byte order: the same in the program
// below and in parse.
const (
	atTime    = 0  // u64, nanoseconds of CLOCK_MONOTONIC
	atWatch   = 8  // u64, which watched control group
	atPID     = 16 // u32
	atParent  = 20 // u32
	atTotal   = 24 // u32, bytes of the arguments
	atLength  = 28 // u32, bytes of them in the record
	atCommand = 32 // 16 bytes, padded with zeros
	atArgs    = 48

	commandSize = 16
	maxArgs     = 1<<12 - 1 // bytes; a mask as well
	recordSize  = atArgs + maxArgs + 1
)

// maxDepth is how far below the root of the hierarchy a watched control group
// may lie. The program asks for each level, so that groups below a watched one
// belong to it.
const maxDepth = 16

// maps are what the program shares with this process.
type maps struct {
	watched *ebpf.Map // id of a control group → number of the watch
	ring    *ebpf.Map
	scratch *ebpf.Map // per processor: the record being made
	lost    *ebpf.Map // per processor: records that did not fit
}

// Places on the program's stack.
const (
	stackKey   = -8
	stackID    = -16
	stackTask  = -24
	stackStart = -32
	stackEnd   = -40
)

// onExec is attached to the tracepoint sched_process_exec, where the new
// program's arguments are in place and none of it has run. R9 is the record,
// R8 the task and later the length, R7 the watch, R6 the arguments' address.
func onExec(m maps, o offsets) asm.Instructions {
	var p asm.Instructions
	p = append(p,
		asm.StoreImm(asm.RFP, stackKey, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.scratch.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.Mov.Reg(asm.R9, asm.R0),
	)
	for level := 1; level <= maxDepth; level++ {
		p = append(p,
			asm.Mov.Imm(asm.R1, int32(level)),
			asm.FnGetCurrentAncestorCgroupId.Call(),
			asm.JEq.Imm(asm.R0, 0, "exit"), // the task's group is not that deep
			asm.StoreMem(asm.RFP, stackID, asm.R0, asm.DWord),
			asm.LoadMapPtr(asm.R1, m.watched.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackID),
			asm.FnMapLookupElem.Call(),
			asm.JNE.Imm(asm.R0, 0, "watched"),
		)
	}
	p = append(p, asm.Ja.Label("exit"))

	p = append(p,
		asm.LoadMem(asm.R7, asm.R0, 0, asm.DWord).WithSymbol("watched"),
		asm.StoreMem(asm.R9, atWatch, asm.R7, asm.DWord),
		asm.FnKtimeGetNs.Call(),
		asm.StoreMem(asm.R9, atTime, asm.R0, asm.DWord),
		asm.FnGetCurrentPidTgid.Call(),
		asm.RSh.Imm(asm.R0, 32),
		asm.StoreMem(asm.R9, atPID, asm.R0, asm.Word),
		asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, atCommand),
		asm.Mov.Imm(asm.R2, commandSize),
		asm.FnGetCurrentComm.Call(),
		asm.FnGetCurrentTask.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
	)
	// What cannot be read is zero afterwards.
	p = append(p, readKernel(stackTask, asm.R8, o.parent)...)
	p = append(p,
		asm.LoadMem(asm.R3, asm.RFP, stackTask, asm.DWord),
		asm.Add.Imm(asm.R3, o.tgid),
		asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, atParent),
		asm.Mov.Imm(asm.R2, 4),
		asm.FnProbeReadKernel.Call(),
	)
	p = append(p, readKernel(stackTask, asm.R8, o.mm)...)
	p = append(p, asm.LoadMem(asm.R8, asm.RFP, stackTask, asm.DWord))
	p = append(p, readKernel(stackStart, asm.R8, o.argStart)...)
	p = append(p, readKernel(stackEnd, asm.R8, o.argEnd)...)
	p = append(p,
		asm.LoadMem(asm.R6, asm.RFP, stackStart, asm.DWord),
		asm.LoadMem(asm.R8, asm.RFP, stackEnd, asm.DWord),
		asm.Sub.Reg(asm.R8, asm.R6),
		asm.StoreMem(asm.R9, atTotal, asm.R8, asm.Word),
		asm.JLE.Imm(asm.R8, maxArgs, "fits"),
		asm.Mov.Imm(asm.R8, maxArgs),
		asm.And.Imm(asm.R8, maxArgs).WithSymbol("fits"), // which the verifier understands
		asm.Mov.Reg(asm.R1, asm.R9), asm.Add.Imm(asm.R1, atArgs),
		asm.Mov.Reg(asm.R2, asm.R8),
		asm.Mov.Reg(asm.R3, asm.R6),
		asm.FnProbeReadUser.Call(),
		asm.JEq.Imm(asm.R0, 0, "read"),
		asm.Mov.Imm(asm.R8, 0),
		asm.StoreMem(asm.R9, atLength, asm.R8, asm.Word).WithSymbol("read"),

		asm.LoadMapPtr(asm.R1, m.ring.FD()),
		asm.Mov.Reg(asm.R2, asm.R9),
		asm.Mov.Reg(asm.R3, asm.R8), asm.Add.Imm(asm.R3, atArgs),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),

		asm.LoadMapPtr(asm.R1, m.lost.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, stackKey),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "exit"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Add.Imm(asm.R1, 1),
		asm.StoreMem(asm.R0, 0, asm.R1, asm.DWord),
	)
	return append(p,
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
	)
}

// readKernel reads a word at an offset from the address in a register into a
// place on the stack.
func readKernel(place int32, base asm.Register, offset int32) asm.Instructions {
	return asm.Instructions{
		asm.Mov.Reg(asm.R1, asm.RFP), asm.Add.Imm(asm.R1, place),
		asm.Mov.Imm(asm.R2, 8),
		asm.Mov.Reg(asm.R3, base), asm.Add.Imm(asm.R3, offset),
		asm.FnProbeReadKernel.Call(),
	}
}
