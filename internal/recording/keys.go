package recording

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

// keys are the runs' keys, one file for each.
type keys struct {
	dir string

	mu   sync.Mutex // guards what follows, and the files
	open map[string]*runKey
}

// runKey seals what was taken out of a run's recording.
type runKey struct {
	id    [8]byte // tells keys apart
	aead  cipher.AEAD
	nonce []byte // makes nonces
}

const secretSize = 32

func checkRun(run string) error {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
	if len(run) == 0 || len(run) > 100 || strings.Trim(run, letters) != "" {
		return mayfly.Errorf(mayfly.Invalid, "bad run id %q", run)
	}
	return nil
}

func newRunKey(secret []byte) (*runKey, error) {
	derive := func(use string, n int) []byte {
		b, err := hkdf.Key(sha256.New, secret, nil, "mayfly recording "+use, n)
		if err != nil {
			panic(err) // the lengths are constant
		}
		return b
	}
	block, err := aes.NewCipher(derive("seal", 32))
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	return &runKey{id: [8]byte(derive("id", 8)), aead: aead, nonce: derive("nonce", 32)}, nil
}

// seal encrypts b. Equal pieces of a run become equal, so that they are stored
// once: the nonce is a keyed hash of what is sealed.
func (k *runKey) seal(b []byte) []byte {
	mac := hmac.New(sha256.New, k.nonce)
	mac.Write(b)
	nonce := mac.Sum(nil)[:k.aead.NonceSize()]
	return k.aead.Seal(nonce, nonce, b, nil)
}

func (k *runKey) unseal(b []byte) ([]byte, error) {
	n := k.aead.NonceSize()
	if len(b) < n {
		return nil, errors.New("a sealed piece is cut short")
	}
	return k.aead.Open(nil, b[:n], b[n:], nil)
}

// Seal encrypts text under the key of a run, as what is taken out of its
// recording is; the result is empty when the run keeps nothing.
func (s *Store) Seal(run string, text []byte) ([]byte, error) {
	key, err := s.keys.get(run)
	if key == nil || err != nil {
		return nil, err
	}
	return key.seal(text), nil
}

// Unseal undoes Seal. The error is of kind mayfly.NotFound when the key is
// destroyed.
func (s *Store) Unseal(run string, sealed []byte) ([]byte, error) {
	key, err := s.keys.get(run)
	if err != nil {
		return nil, err
	}
	if key == nil {
		return nil, mayfly.Errorf(mayfly.NotFound, "the recording key of run %s is destroyed", run)
	}
	return key.unseal(sealed)
}

// create makes a run's key when there is none.
func (k *keys) create(run string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if key, err := k.load(run); key != nil || err != nil {
		return err
	}
	secret := make([]byte, secretSize)
	rand.Read(secret) // never fails
	path := filepath.Join(k.dir, run)
	if err := writeSynced(path+".new", secret); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return syncDir(k.dir)
}

// get returns a run's key; nil when it has none.
func (k *keys) get(run string) (*runKey, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.load(run)
}

func (k *keys) load(run string) (*runKey, error) {
	if key := k.open[run]; key != nil {
		return key, nil
	}
	secret, err := os.ReadFile(filepath.Join(k.dir, run))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(secret) != secretSize {
		return nil, mayfly.Errorf(mayfly.Internal, "the recording key of run %s is damaged", run)
	}
	key, err := newRunKey(secret)
	if err != nil {
		return nil, err
	}
	if k.open == nil || len(k.open) >= 1000 {
		k.open = map[string]*runKey{}
	}
	k.open[run] = key
	return key, nil
}

// destroy overwrites a run's key and removes it.
func (k *keys) destroy(run string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.open, run)
	path := filepath.Join(k.dir, run)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	over := writeSynced(path, bytes.Repeat([]byte{0}, secretSize))
	return errors.Join(over, os.Remove(path), syncDir(k.dir))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
