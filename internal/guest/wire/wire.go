// Package wire is the protocol on the guest's socket: one request per
// connection, little-endian, every size bounded. It imports next to nothing,
// because the guest's start is on the path of every environment's creation.
//
//	server: u32 length, request
//	guest:  u8 status, u32 length, text or exit record
//
// After a successful accept, the connection carries the bytes of the accepted
// one. After a successful attach, the server sends messages (u8 kind, u32 length,
// payload) and the guest sends single bytes: Wake when more output is
// recorded, Ended when all of it is.
package wire

import (
	"encoding/binary"
	"errors"
	"io"
)

// Op is what a request asks for.
type Op byte

const (
	OpStart  Op = 1
	OpWait   Op = 2
	OpSignal Op = 3
	OpAttach Op = 4
	OpListen Op = 5 // at a port, until the connection ends
	OpAccept Op = 6 // one connection to that port, which is relayed after the reply
	OpProbe  Op = 7 // whether a process listens at a port: Taken when one does
	OpClear  Op = 8 // kill every process of a user, and wait until none is left
	OpKill   Op = 9 // kill every process of a user
)

// Status is the outcome of a request.
type Status byte

const (
	OK       Status = 0
	NotFound Status = 1 // the guest knows no such run
	Invalid  Status = 2 // the request is wrong
	Failed   Status = 3 // the guest could not do it
	Taken    Status = 4 // a process inside has the port
)

// Bytes that the guest sends unasked.
const (
	Hello byte = 'h' // first on every connection: the guest is there
	Wake  byte = 'w'
	Ended byte = 'e'
)

// Kinds of messages to an attachment.
const (
	Input      byte = 'i'
	CloseInput byte = 'c'
	Resize     byte = 'r' // u16 rows, u16 columns
	Signal     byte = 's' // u32 signal
)

// Bounds of what one side accepts from the other.
const (
	MaxRequest = 8 << 20 // more than execve(2) accepts
	MaxReply   = 64 << 10
	MaxMessage = 64 << 10
	MaxRunID   = 64
)

// ErrMalformed says that the other side does not keep to the protocol.
var ErrMalformed = errors.New("malformed message")

// Request is any request; which fields count depends on Op.
type Request struct {
	Op     Op
	Run    string
	Signal uint32

	Argv, Env  []string
	Dir        string
	TTY, Stdin bool
	Rows, Cols uint16
	Output     int64

	// UID is the user to start as, whose variables are Env and nothing else; 0
	// stands for that of commands. OpClear never takes 0.
	UID uint32

	Port uint16
}

// OfRun reports whether the request is about a run and names it.
func (r Request) OfRun() bool { return r.Op < OpListen }

// ofPort reports whether the request is about a port.
func (r Request) ofPort() bool { return r.Op == OpListen || r.Op == OpAccept || r.Op == OpProbe }

// ValidRun reports whether s can be a run's id, and thus a file name.
func ValidRun(s string) bool {
	if len(s) == 0 || len(s) > MaxRunID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// AppendRequest appends the request with its length.
func AppendRequest(b []byte, r Request) []byte {
	at := len(b)
	b = append(b, 0, 0, 0, 0, byte(r.Op))
	b = AppendString(b, r.Run)
	b = binary.LittleEndian.AppendUint32(b, r.Signal)
	if r.Op == OpStart {
		b = AppendStrings(b, r.Argv)
		b = AppendStrings(b, r.Env)
		b = AppendString(b, r.Dir)
		b = append(b, flag(r.TTY)|flag(r.Stdin)<<1)
		b = binary.LittleEndian.AppendUint16(b, r.Rows)
		b = binary.LittleEndian.AppendUint16(b, r.Cols)
		b = binary.LittleEndian.AppendUint64(b, uint64(r.Output))
	}
	if r.Op == OpStart || r.ofUser() {
		b = binary.LittleEndian.AppendUint32(b, r.UID)
	}
	if r.ofPort() {
		b = binary.LittleEndian.AppendUint16(b, r.Port)
	}
	binary.LittleEndian.PutUint32(b[at:], uint32(len(b)-at-4))
	return b
}

// ParseRequest parses what follows the length.
func ParseRequest(b []byte) (Request, error) {
	p := Parser{b: b}
	r := Request{Op: Op(p.Byte()), Run: p.String(), Signal: p.Uint32()}
	if r.Op == OpStart {
		r.Argv = p.Strings()
		r.Env = p.Strings()
		r.Dir = p.String()
		flags := p.Byte()
		r.TTY, r.Stdin = flags&1 != 0, flags&2 != 0
		r.Rows = p.Uint16()
		r.Cols = p.Uint16()
		r.Output = int64(p.Uint64())
	}
	if r.Op == OpStart || r.ofUser() {
		r.UID = p.Uint32()
	}
	if r.ofPort() {
		r.Port = p.Uint16()
	}
	if !p.Done() || !r.valid() {
		return Request{}, ErrMalformed
	}
	return r, nil
}

// Users that processes may be started as, beside that of commands.
const (
	FirstUID = 2000
	LastUID  = 2999
)

func (r Request) valid() bool {
	known := r.Op >= OpStart && r.Op <= OpKill
	user := r.UID == 0 && !r.ofUser() || r.UID >= FirstUID && r.UID <= LastUID
	return known && user && r.OfRun() == ValidRun(r.Run) && r.ofPort() == (r.Port != 0) && r.Output >= 0
}

// ofUser reports whether a request is about the processes of a user.
func (r Request) ofUser() bool { return r.Op == OpClear || r.Op == OpKill }

// ReadRequest reads a request with its length.
func ReadRequest(r io.Reader) (Request, error) {
	b, err := readSized(r, MaxRequest)
	if err != nil {
		return Request{}, err
	}
	return ParseRequest(b)
}

// AppendReply appends a reply; text is cut at MaxReply.
func AppendReply(b []byte, s Status, text []byte) []byte {
	text = text[:min(len(text), MaxReply)]
	b = append(b, byte(s))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

// ReadReply reads a reply.
func ReadReply(r io.Reader) (Status, []byte, error) {
	var s [1]byte
	if _, err := io.ReadFull(r, s[:]); err != nil {
		return 0, nil, err
	}
	text, err := readSized(r, MaxReply)
	return Status(s[0]), text, err
}

// AppendMessage appends a message to an attachment.
func AppendMessage(b []byte, kind byte, payload []byte) []byte {
	b = append(b, kind)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// ReadMessage reads a message to an attachment.
func ReadMessage(r io.Reader) (kind byte, payload []byte, err error) {
	var k [1]byte
	if _, err := io.ReadFull(r, k[:]); err != nil {
		return 0, nil, err
	}
	payload, err = readSized(r, MaxMessage)
	return k[0], payload, err
}

// readSized reads a length and as many bytes.
func readSized(r io.Reader, limit uint32) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, unexpected(err)
	}
	n := binary.LittleEndian.Uint32(size[:])
	if n > limit {
		return nil, ErrMalformed
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return b, unexpected(err)
}

// unexpected turns an end in the middle of a message into an error.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}
