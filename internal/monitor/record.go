package monitor

import (
	"encoding/binary"
	"errors"
	"strings"
	"time"
	"unicode/utf8"
)

// Exec says that a process began to execute a program. Its names come from
// inside the environment: they are valid UTF-8 and bounded, and otherwise
// whatever somebody chose.
type Exec struct {
	Environment string    `json:"environment"`
	Time        time.Time `json:"time"`
	PID         int       `json:"pid"` // on the host
	Parent      int       `json:"parent"`
	Command     string    `json:"command"` // the name of the program's file, cut at 15 bytes
	Args        []string  `json:"args,omitempty"`
	Truncated   bool      `json:"truncated,omitempty"` // there are more arguments than Args has
}

// record is one from the ring buffer.
type record struct {
	time  uint64
	watch uint64
	exec  Exec
}

var errRecord = errors.New("malformed record")

// parse takes a record apart.
func parse(b []byte) (record, error) {
	if len(b) < atArgs {
		return record{}, errRecord
	}
	order := binary.NativeEndian
	total, length := order.Uint32(b[atTotal:]), order.Uint32(b[atLength:])
	if length > maxArgs || uint64(len(b)) < atArgs+uint64(length) {
		return record{}, errRecord
	}
	r := record{time: order.Uint64(b[atTime:]), watch: order.Uint64(b[atWatch:])}
	r.exec = Exec{
		PID:       int(order.Uint32(b[atPID:])),
		Parent:    int(order.Uint32(b[atParent:])),
		Truncated: length < total,
	}
	command, _, _ := strings.Cut(string(b[atCommand:atCommand+commandSize]), "\x00")
	r.exec.Command = valid(command)
	r.exec.Args = arguments(string(b[atArgs:atArgs+length]), r.exec.Truncated)
	return r, nil
}

// arguments splits what execve(2) puts one behind the other, each with a zero
// at its end. Of truncated ones, the last may be cut.
func arguments(block string, truncated bool) []string {
	if block == "" {
		return nil
	}
	if !truncated {
		block = strings.TrimSuffix(block, "\x00")
	}
	args := strings.Split(block, "\x00")
	if truncated && args[len(args)-1] == "" {
		args = args[:len(args)-1] // it was cut between two
	}
	for i, a := range args {
		args[i] = valid(a)
	}
	return args
}

func valid(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
