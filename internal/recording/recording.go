// Package recording keeps what passed between agents and models, redacted and
// each byte once, and plays it back.
package recording

import (
	"context"

	"mayfly.dev/mayfly"
)

// Mode says what becomes of the bytes that redaction takes out of a run's
// recording.
type Mode string

const (
	// Encrypted keeps them under a key of the run, so that exact replay works
	// until the key is destroyed.
	Encrypted Mode = "encrypted"
	// None forgets them at once.
	None Mode = "none"
)

// Secret is a value that must never be written, and the name that stands in
// its place.
type Secret struct{ Name, Value string }

// Options are the settings of a store.
type Options struct {
	// Secrets are the server's own keys and what else is known at its start.
	Secrets []Secret
	// Skip names rules and groups of rules ("personal") to leave out.
	Skip []string
}

// Store keeps contents in a directory. It is safe for concurrent use by one
// process; the caller holds a lock that keeps other processes out.
type Store struct{}

// Open opens the recordings in dir and makes the directory when there is none.
func Open(dir string, o Options) (*Store, error) {
	return nil, mayfly.Errorf(mayfly.Unsupported, "open recordings")
}

// Begin says what becomes of what is taken out of a run's recording. It comes
// before the run's first content; without it nothing is kept. Beginning a run
// again changes nothing.
func (s *Store) Begin(ctx context.Context, run string, m Mode) error { return nil }

// DestroyKey makes what was taken out of a run's recording unreadable for
// ever. Destroying a missing key is not an error.
func (s *Store) DestroyKey(ctx context.Context, run string) error { return nil }

// WriteContent redacts c, writes it, and returns its digest when it is on disk.
func (s *Store) WriteContent(ctx context.Context, run string, c mayfly.Content) (string, error) {
	return "", mayfly.Errorf(mayfly.Unsupported, "write content")
}

// Content returns the redacted content of a digest.
func (s *Store) Content(ctx context.Context, digest string) (mayfly.Content, error) {
	return mayfly.Content{}, mayfly.Errorf(mayfly.Unsupported, "read content")
}

// Exact returns a content as it passed, or with Redacted set when the run's
// key is gone.
func (s *Store) Exact(ctx context.Context, run, digest string) (mayfly.Content, error) {
	return mayfly.Content{}, mayfly.Errorf(mayfly.Unsupported, "read content")
}

// Close closes the files.
func (s *Store) Close() error { return nil }

// Player answers the requests of a replay from the recording of another run.
type Player struct{}

// NewPlayer makes a player. exchanges lists the exchanges of a run in order of
// arrival, with their ends as far as they have one.
func NewPlayer(s *Store, exchanges func(ctx context.Context, run string) ([]mayfly.Exchange, error)) *Player {
	return &Player{}
}

// Answer returns the recorded exchange that request asks for again and its
// answer, and a divergence when they are not the same.
func (p *Player) Answer(ctx context.Context, replay mayfly.Replay, run string, x mayfly.Exchange, request mayfly.Content) (mayfly.Exchange, mayfly.Content, *mayfly.Divergence, error) {
	return mayfly.Exchange{}, mayfly.Content{}, nil, mayfly.Errorf(mayfly.Unsupported, "answer")
}

// Missing lists what the recording has and the replay never asked for.
func (p *Player) Missing(ctx context.Context, replay mayfly.Replay, run string) ([]mayfly.Divergence, error) {
	return nil, nil
}

// Forget drops what is kept in memory of a replay.
func (p *Player) Forget(run string) {}
