package guest

import (
	"time"

	"mayfly.dev/mayfly"
)

// Command is a process to start.
type Command struct {
	Run        string   // id, [a-z0-9-]{1,64}; starting the same one twice starts it once
	Argv       []string // looked up in the PATH of Env when it holds no slash
	Env        []string // "K=V", on top of the environment's own
	Dir        string   // absolute; empty: /
	TTY        bool     // a terminal instead of pipes
	Rows, Cols uint16   // of the terminal; 0: 24 and 80
	Stdin      bool     // keep standard input open for an attachment; else it is empty
	Output     int64    // bytes of output to keep; 0: mayfly.DefaultLimits.Output
	UID        uint32   // a service's user, wire.FirstUID to wire.LastUID, who has no variables but Env; 0: that of commands
}

// Exit is the record of an ended process.
type Exit struct {
	Run     string
	Code    int    // 128+n when signal n ended it, 127 when it was not found, 126 when it could not be executed
	Reason  string // set when it could not be started
	OOM     bool   // a process was killed for memory while it ran
	Started time.Time
	Ended   time.Time // by the guest's clock
	Usage   mayfly.Usage
}
