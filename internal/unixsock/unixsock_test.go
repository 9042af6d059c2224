package unixsock

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestDialReachesListenerAtAnyPathLength(t *testing.T) {
	for name, dir := range map[string]string{
		"short": t.TempDir(),
		"long":  filepath.Join(t.TempDir(), strings.Repeat("d", 200), strings.Repeat("e", 200)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "s.sock")
			l, err := Listen(path, 0o660)
			if err != nil {
				t.Fatal(err)
			}
			go func() {
				if c, err := l.Accept(); err == nil {
					io.WriteString(c, "hello")
					c.Close()
				}
			}()
			c, err := Dial(context.Background(), path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if got, err := io.ReadAll(c); string(got) != "hello" || err != nil {
				t.Errorf("read = %q, %v, want hello", got, err)
			}
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if got := info.Mode().Perm(); got != 0o660 {
				t.Errorf("mode = %v, want %v", got, fs.FileMode(0o660))
			}
			l.Close()
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("socket after Close: %v, want %v", err, fs.ErrNotExist)
			}
		})
	}
}

func TestListenReplacesStaleSocketOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fd)
	l, err := Listen(path, 0o600)
	if err != nil {
		t.Fatalf("listen over a stale socket: %v", err)
	}
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(path, 0o600); err == nil {
		l.Close()
		t.Error("listen over a regular file succeeded")
	}
	if got, _ := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("file = %q, want %q", got, "precious")
	}
}

func TestDialErrorsTellWhetherASocketIsThere(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 150))
	if _, err := Dial(context.Background(), filepath.Join(dir, "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial in a missing directory = %v, want %v", err, fs.ErrNotExist)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(context.Background(), filepath.Join(dir, "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("dial to a missing socket = %v, want %v", err, fs.ErrNotExist)
	}
}
