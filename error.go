package mayfly

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind classifies an error by what its reader can do about it. Kinds are few
// and append-only: they are part of the HTTP API and of the exit statuses.
type Kind string

const (
	Invalid     Kind = "invalid"     // the input is wrong; correct it
	NotFound    Kind = "not_found"   // no such thing
	Conflict    Kind = "conflict"    // not in the state that the request needs
	Forbidden   Kind = "forbidden"   // not allowed for this caller
	Drift       Kind = "drift"       // the lock and the world differ
	Exhausted   Kind = "exhausted"   // a quota, a limit or the disk is used up
	Unsupported Kind = "unsupported" // this machine cannot do it
	Timeout     Kind = "timeout"     // it took longer than allowed
	Unavailable Kind = "unavailable" // no server, or it is stopping
	Missing     Kind = "missing"     // a template or image must be uploaded first
	Internal    Kind = "internal"    // a defect; the log has the id
	Diverged    Kind = "diverged"    // a replay, or a repeated run, went another way
)

// kinds maps each kind to its HTTP status and its exit status. Exit statuses
// follow sysexits.h and timeout(1), so that they rarely meet an agent's own.
var kinds = map[Kind]struct{ http, exit int }{
	Invalid:     {http.StatusBadRequest, 64},
	NotFound:    {http.StatusNotFound, 66},
	Conflict:    {http.StatusConflict, 65},
	Forbidden:   {http.StatusForbidden, 77},
	Drift:       {http.StatusPreconditionFailed, 78},
	Exhausted:   {http.StatusInsufficientStorage, 75},
	Unsupported: {http.StatusNotImplemented, 72},
	Timeout:     {http.StatusGatewayTimeout, 124},
	Unavailable: {http.StatusServiceUnavailable, 69},
	Missing:     {http.StatusFailedDependency, 71},
	Internal:    {http.StatusInternalServerError, 70},
	Diverged:    {http.StatusUnprocessableEntity, 79},
}

// HTTPStatus is the response status for errors of this kind.
func (k Kind) HTTPStatus() int {
	if s, ok := kinds[k]; ok {
		return s.http
	}
	return http.StatusInternalServerError
}

// ExitStatus is the process exit status for errors of this kind.
func (k Kind) ExitStatus() int {
	if s, ok := kinds[k]; ok {
		return s.exit
	}
	return kinds[Internal].exit
}

// Error is an error that a user can act on. It is what the HTTP API sends.
type Error struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
	Fix     string `json:"hint,omitempty"` // what to do next, usually a command
	ID      string `json:"id,omitempty"`   // of the log record, for internal errors
	cause   error
}

// Errorf makes an error of the given kind. A %w verb keeps the cause for
// errors.Is and errors.As.
func Errorf(kind Kind, format string, args ...any) *Error {
	wrapped := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: wrapped.Error(), cause: errors.Unwrap(wrapped)}
}

// Hint sets what the reader can do about the error and returns it.
func (e *Error) Hint(format string, args ...any) *Error {
	e.Fix = fmt.Sprintf(format, args...)
	return e
}

func (e *Error) Error() string { return e.Message }

func (e *Error) Unwrap() error { return e.cause }

// KindOf is the kind of the first *Error in err's chain; Internal when there
// is none, and the empty kind for a nil error.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	if errors.Is(err, errors.ErrUnsupported) {
		return Unsupported
	}
	return Internal
}
