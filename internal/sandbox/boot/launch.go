package boot

import "encoding/binary"

// Names under which the program is executed.
const (
	GuestName    = "mayfly-guest"
	LauncherName = "mayfly-launcher"
)

// LauncherFD is the launcher's socket, of the kind that keeps messages apart:
// one Launch with descriptors, answered by one Launched, with a pidfd if it
// went well, and by Left.
const LauncherFD = 3

// Left says that the launcher is not in the guest's groups any more.
const Left = 1

// The first descriptors of a Launch; the directory of the v2 group, if any,
// and the tasks files of v1 groups follow.
const (
	LaunchLog     = 0
	LaunchBoot    = 1
	LaunchProgram = 2
	LaunchGroups  = 3
)

// Launch asks for a guest.
type Launch struct {
	UIDBase uint32
	Group   bool // a directory of a v2 group is among the descriptors
	In, Out int  // how many tasks files lead into the v1 groups and back
	Name    string
}

// LaunchSize bounds a message between server and launcher.
const LaunchSize = 256

// Append appends the message.
func (l Launch) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, l.UIDBase)
	var group byte
	if l.Group {
		group = 1
	}
	b = append(b, group, byte(l.In), byte(l.Out))
	return append(b, l.Name...)
}

// ParseLaunch is the inverse of Append. fds is the number of descriptors that
// came with the message.
func ParseLaunch(b []byte, fds int) (Launch, error) {
	if len(b) < 7 {
		return Launch{}, ErrMalformed
	}
	l := Launch{
		UIDBase: binary.LittleEndian.Uint32(b),
		Group:   b[4] == 1,
		In:      int(b[5]), Out: int(b[6]),
		Name: string(b[7:]),
	}
	want := LaunchGroups + l.In + l.Out
	if l.Group {
		want++
	}
	if fds != want {
		return Launch{}, ErrMalformed
	}
	return l, nil
}

// Doors are those of a message's descriptors that lead into groups, In of them,
// and out again.
func (l Launch) Doors(fds []int) []int {
	if l.Group {
		return fds[LaunchGroups+1:]
	}
	return fds[LaunchGroups:]
}

// Launched is the answer: an error number, or 0 and the process.
type Launched struct {
	Errno uint32
	PID   uint32
}

// Append appends the message.
func (l Launched) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, l.Errno)
	return binary.LittleEndian.AppendUint32(b, l.PID)
}

// ParseLaunched is the inverse of Append.
func ParseLaunched(b []byte) (Launched, error) {
	if len(b) != 8 {
		return Launched{}, ErrMalformed
	}
	return Launched{Errno: binary.LittleEndian.Uint32(b), PID: binary.LittleEndian.Uint32(b[4:])}, nil
}
