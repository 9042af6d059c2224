package record

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// ExitFile is the name of the exit record in a run's directory.
const ExitFile = "exit.json"

// MaxExit bounds the size of an exit record in bytes.
const MaxExit = 16 << 10

// maxReason bounds the text in it; JSON may need six bytes for one.
const maxReason = 2 << 10

// Exit says how a process ended. Times are unix nanoseconds, durations
// nanoseconds, sizes bytes.
type Exit struct {
	Run       string `json:"run"`
	Code      int    `json:"code"`
	Reason    string `json:"reason"`
	OOM       bool   `json:"oom"`
	Started   int64  `json:"started"`
	Ended     int64  `json:"ended"`
	UserCPU   int64  `json:"user_cpu"`
	SystemCPU int64  `json:"system_cpu"`
	MaxRSS    int64  `json:"max_rss"`
}

// AppendJSON appends the record. It is written by hand because encoding/json
// would double the guest's size.
func (e Exit) AppendJSON(b []byte) []byte {
	b = append(b, `{"run":`...)
	b = appendText(b, e.Run)
	b = append(b, `,"code":`...)
	b = strconv.AppendInt(b, int64(e.Code), 10)
	b = append(b, `,"reason":`...)
	b = appendText(b, e.Reason[:min(len(e.Reason), maxReason)])
	b = append(b, `,"oom":`...)
	b = strconv.AppendBool(b, e.OOM)
	for _, f := range []struct {
		name  string
		value int64
	}{
		{"started", e.Started}, {"ended", e.Ended},
		{"user_cpu", e.UserCPU}, {"system_cpu", e.SystemCPU}, {"max_rss", e.MaxRSS},
	} {
		b = append(b, `,"`...)
		b = append(b, f.name...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, f.value, 10)
	}
	return append(b, "}\n"...)
}

// appendText appends a JSON string; control characters become question marks.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < ' ' || c == 0x7f:
			b = append(b, '?')
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// WriteExit writes the record into the directory dir, whole or not at all as
// far as processes can crash. It does not wait for the disk: what ends the
// machine ends the environment with it.
func WriteExit(dir int, e Exit) error {
	const temporary = "exit.tmp"
	fd, err := unix.Openat(dir, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	err = writeAll(fd, e.AppendJSON(nil))
	unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Renameat(dir, temporary, dir, ExitFile)
}
