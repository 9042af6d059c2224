// Package recording keeps what passed between agents and models, redacted and
// each byte once, and plays it back.
package recording

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/recording/pack"
	"mayfly.dev/mayfly/internal/recording/redact"
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

// Options are the settings of a store.
type Options struct {
	// Secrets are the server's own keys and what else is known at its start:
	// see redact.FromEnvironment.
	Secrets []redact.Secret
	// Skip names rules and groups of rules ("personal") to leave out.
	Skip []string
}

// Store keeps contents in a directory: packs/ has what may be read, and sealed
// what may not; keys/ has a key for each run that seals. It is safe for
// concurrent use by one process; the caller holds a lock that keeps other
// processes out.
type Store struct {
	redactor *redact.Redactor
	packs    *pack.Store
	keys     keys
}

// Open opens the recordings in dir and makes the directory when there is none.
func Open(dir string, o Options) (*Store, error) {
	r, err := redact.New(redact.Options{Secrets: o.Secrets, Skip: o.Skip})
	if err != nil {
		return nil, fmt.Errorf("open recordings: %w", err)
	}
	s := &Store{redactor: r, keys: keys{dir: filepath.Join(dir, "keys")}}
	if err := os.MkdirAll(s.keys.dir, 0o700); err != nil {
		return nil, fmt.Errorf("open recordings: %w", err)
	}
	if s.packs, err = pack.Open(filepath.Join(dir, "packs")); err != nil {
		return nil, fmt.Errorf("open recordings: %w", err)
	}
	if err := syncDir(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open recordings: %w", err), s.packs.Close())
	}
	return s, nil
}

// Close closes the files. What was acknowledged is on disk already.
func (s *Store) Close() error { return s.packs.Close() }

// Begin says what becomes of what is taken out of a run's recording. It comes
// before the run's first content; without it nothing is kept. Beginning a run
// again changes nothing; a run whose key was destroyed must not be begun.
func (s *Store) Begin(ctx context.Context, run string, m Mode) error {
	if err := checkRun(run); err != nil {
		return err
	}
	switch m {
	case None:
		return nil
	case Encrypted:
		if err := s.keys.create(run); err != nil {
			return fmt.Errorf("begin recording of run %s: %w", run, err)
		}
		return nil
	}
	return mayfly.Errorf(mayfly.Invalid, "unknown mode of recording %q", m).Hint("use %q or %q", Encrypted, None)
}

// DestroyKey makes what was taken out of a run's recording unreadable for
// ever. Destroying a missing key is not an error.
func (s *Store) DestroyKey(ctx context.Context, run string) error {
	if err := checkRun(run); err != nil {
		return err
	}
	if err := s.keys.destroy(run); err != nil {
		return fmt.Errorf("destroy the recording key of run %s: %w", run, err)
	}
	return nil
}

// Redact returns text without what must not be written.
func (s *Store) Redact(text string) string { return s.redactor.Text(text) }

// WriteContent redacts c, writes it, and returns its digest when it is on
// disk. Times of chunks are kept to the microsecond.
func (s *Store) WriteContent(ctx context.Context, run string, c mayfly.Content) (digest string, err error) {
	if err := checkRun(run); err != nil {
		return "", err
	}
	key, err := s.keys.get(run)
	if err != nil {
		return "", fmt.Errorf("record content of run %s: %w", run, err)
	}
	v := s.viewOf(c)
	sum, streams := v.streams(key)
	d := pack.Digest(sha256.Sum256(sum))
	err = s.packs.Write(ctx, d, streams, func(runs [][]pack.Run) []byte { return encodeRecord(sum, runs) })
	if err != nil {
		return "", fmt.Errorf("record content of run %s: %w", run, err)
	}
	return d.String(), nil
}

// Content returns the redacted content of a digest. Its body is not
// compressed, whatever passed. An error names what is damaged; NotFound when
// there is no such content.
func (s *Store) Content(ctx context.Context, digest string) (mayfly.Content, error) {
	rec, err := s.record(ctx, digest)
	if err != nil {
		return mayfly.Content{}, err
	}
	c, err := s.readView(rec)
	if err != nil {
		return mayfly.Content{}, damaged(rec, err)
	}
	return c, nil
}

// Exact returns a content as it passed or, with Redacted set, as Content does
// when what was taken out cannot be put back.
func (s *Store) Exact(ctx context.Context, run, digest string) (mayfly.Content, error) {
	c, _, err := s.exact(ctx, run, digest)
	return c, err
}

// exact also reports whether the body is as it passed.
func (s *Store) exact(ctx context.Context, run, digest string) (c mayfly.Content, body bool, err error) {
	if err := checkRun(run); err != nil {
		return c, false, err
	}
	rec, err := s.record(ctx, digest)
	if err != nil {
		return c, false, err
	}
	key, err := s.keys.get(run)
	if err != nil {
		return c, false, err
	}
	c, err = s.readView(rec)
	switch {
	case err != nil:
	case rec.sealed && key != nil && key.id == rec.key:
		c, err = s.unseal(rec, c, key)
		body = true
	case rec.rawKept:
		c, err = s.readRaw(rec, c)
		body = true
	default:
		body = !rec.bodyCut
	}
	if err != nil {
		return mayfly.Content{}, false, damaged(rec, err)
	}
	return c, body, nil
}

func damaged(rec record, err error) error {
	return mayfly.Errorf(mayfly.Internal, "recorded content %s is damaged: %w", rec.digest, err)
}

func (s *Store) record(ctx context.Context, digest string) (record, error) {
	if err := ctx.Err(); err != nil {
		return record{}, err
	}
	text, ok := strings.CutPrefix(digest, "sha256:")
	b, err := hex.DecodeString(text)
	if !ok || err != nil || len(b) != len(pack.Digest{}) {
		return record{}, mayfly.Errorf(mayfly.Invalid, "bad digest %q", digest)
	}
	d := pack.Digest(b)
	data, err := s.packs.Record(d)
	if mayfly.KindOf(err) == mayfly.NotFound {
		return record{}, err
	}
	if err != nil {
		return record{}, damaged(record{digest: d}, err)
	}
	rec, err := parseRecord(d, data)
	if err != nil {
		return record{}, damaged(record{digest: d}, err)
	}
	return rec, nil
}

// read joins pieces and compares their hash.
func (s *Store) read(runs []pack.Run, want [32]byte) ([]byte, error) {
	var out bytes.Buffer
	err := s.packs.Read(runs, func(piece []byte) error { out.Write(piece); return nil })
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(out.Bytes()) != want {
		return nil, errors.New("its bytes have another digest")
	}
	return out.Bytes(), nil
}

func (s *Store) readView(rec record) (c mayfly.Content, err error) {
	head, err := s.read(rec.header, rec.headerSum)
	if err != nil {
		return c, err
	}
	if c.Header, err = parseHeader(head); err != nil {
		return c, err
	}
	if c.Body, err = s.read(rec.body, rec.bodySum); err != nil {
		return c, err
	}
	c.Chunks, c.Redacted = rec.chunks(rec.sizes), rec.redacted
	return c, nil
}

// readRaw puts the compressed body in the place of the view's.
func (s *Store) readRaw(rec record, c mayfly.Content) (mayfly.Content, error) {
	body, err := s.read(rec.rest, rec.original)
	if err != nil {
		return c, err
	}
	c.Body, c.Chunks = body, rec.chunks(rec.rawSizes)
	if rec.coding != "" {
		c.Header[contentEncoding] = []string{rec.coding}
	}
	return c, nil
}

// unseal puts back what was taken out of a view.
func (s *Store) unseal(rec record, c mayfly.Content, key *runKey) (mayfly.Content, error) {
	var plain []byte
	sum := sha256.New()
	err := s.packs.Read(rec.rest, func(piece []byte) error {
		sum.Write(piece)
		b, err := key.unseal(piece)
		plain = append(plain, b...)
		return err
	})
	if err != nil {
		return c, err
	}
	if [32]byte(sum.Sum(nil)) != rec.original {
		return c, errors.New("what is sealed has another digest")
	}
	return restore(plain, rec, c)
}
