// Package boot is what a sandbox tells its guest at the start: how things
// shall be, and, as soon as they are made, the mounts as descriptors.
//
//	server: u32 length, config
//	server: 'm' with the descriptors
//	guest:  'r', or 'f' and what failed; then it closes
//
// Guests are started by a launcher, the same program under another name, that
// lives as long as the server: a process as small as that forks in a fraction
// of the time that the server would take.
//
// It imports next to nothing; see package wire of the guest.
package boot

import (
	"encoding/binary"
	"errors"
	"strings"
)

// SocketFD is the boot socket, a stream, which the guest inherits.
const SocketFD = 3

// Mounts is the byte that the descriptors come with.
const Mounts byte = 'm'

// The first of those descriptors; the binds follow in order.
const (
	RootFD     = 0 // detached mount of the root file system
	RunsFD     = 1 // detached mount of the directory for logs and exit records
	KillsFD    = 2 // file with a line "oom_kill <n>"
	ListenerFD = 3 // where requests arrive
	FirstBind  = 4
)

// Answers.
const (
	Ready  byte = 'r'
	Failed byte = 'f'
)

// Bounds of a message.
const (
	MaxConfig = 1 << 20
	MaxBinds  = 200 // one message carries 253 descriptors at most, unix(7)
)

// Config is everything the guest needs to know.
type Config struct {
	Hostname     string
	Nested       bool     // allow user namespaces inside
	UID, GID     uint32   // of commands
	Tasks        uint64   // how many tasks commands may have together
	SharedMemory uint64   // bytes of /dev/shm
	Filter       []byte   // seccomp program, an array of struct sock_filter
	Env          []string // of every command
	Binds        []string // where the mounts go, absolute
}

// ErrMalformed says that a message is not a config.
var ErrMalformed = errors.New("malformed boot message")

const fixed = 40

// Append appends the config, without a length. Strings must not hold NUL.
func Append(b []byte, c Config) []byte {
	var nested uint32
	if c.Nested {
		nested = 1
	}
	le := binary.LittleEndian
	b = le.AppendUint32(b, nested)
	b = le.AppendUint32(b, c.UID)
	b = le.AppendUint32(b, c.GID)
	b = le.AppendUint64(b, c.Tasks)
	b = le.AppendUint64(b, c.SharedMemory)
	b = le.AppendUint32(b, uint32(len(c.Filter)))
	b = le.AppendUint32(b, uint32(len(c.Env)))
	b = le.AppendUint32(b, uint32(len(c.Binds)))
	b = append(b, c.Filter...)
	b = append(b, c.Hostname...)
	for _, list := range [][]string{c.Env, c.Binds} {
		for _, s := range list {
			b = append(b, 0)
			b = append(b, s...)
		}
	}
	return b
}

// Parse is the inverse of Append.
func Parse(b []byte) (Config, error) {
	if len(b) < fixed {
		return Config{}, ErrMalformed
	}
	le := binary.LittleEndian
	c := Config{
		Nested:       le.Uint32(b) == 1,
		UID:          le.Uint32(b[4:]),
		GID:          le.Uint32(b[8:]),
		Tasks:        le.Uint64(b[12:]),
		SharedMemory: le.Uint64(b[20:]),
	}
	filter, env, binds := uint64(le.Uint32(b[28:])), uint64(le.Uint32(b[32:])), uint64(le.Uint32(b[36:]))
	b = b[fixed:]
	if filter > uint64(len(b)) {
		return Config{}, ErrMalformed
	}
	c.Filter = b[:filter]
	words := strings.Split(string(b[filter:]), "\x00")
	if uint64(len(words)) != 1+env+binds {
		return Config{}, ErrMalformed
	}
	c.Hostname, c.Env, c.Binds = words[0], words[1:1+env], words[1+env:]
	return c, nil
}
