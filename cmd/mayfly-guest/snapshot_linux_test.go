package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest"
)

// tell counts, and says each number after it has written it in every way in
// which programs write files.
func tell() int {
	err := func() error {
		written, err := os.Create("/workspace/written")
		if err != nil {
			return err
		}
		mapped, err := os.Create("/workspace/mapped")
		if err != nil {
			return err
		}
		if err := mapped.Truncate(4096); err != nil {
			return err
		}
		memory, err := unix.Mmap(int(mapped.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		for n := uint64(1); ; n++ {
			b := binary.LittleEndian.AppendUint64(nil, n)
			if _, err := written.WriteAt(b, 0); err != nil {
				return err
			}
			copy(memory, b)
			if err := os.WriteFile("/workspace/next", b, 0o600); err != nil {
				return err
			}
			if err := os.Rename("/workspace/next", "/workspace/renamed"); err != nil {
				return err
			}
			fmt.Println(n)
		}
	}()
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func TestFrozenVolumeHoldsWhatWasWritten(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	run := e.launch(guest.Command{Argv: []string{"/probe/" + filepath.Base(os.Args[0])}, Env: []string{probeVariable + "=tell"}})
	for lastTold(t, e, run) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	for range 5 {
		time.Sleep(100 * time.Millisecond)
		if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
		told := lastTold(t, e, run)
		for _, name := range []string{"written", "mapped", "renamed"} {
			b, err := os.ReadFile(filepath.Join(e.spec.Upper, "workspace", name))
			if err != nil || len(b) < 8 {
				t.Fatalf("%s: got = %d bytes, %v", name, len(b), err)
			}
			if got := binary.LittleEndian.Uint64(b); got < told {
				t.Errorf("%s: got = %d, want at least %d, which was told to be written", name, got, told)
			}
		}
		if err := w.runtime.Thaw(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
	}
}

// lastTold returns the last whole line of a run's output.
func lastTold(t *testing.T, e *env, run string) uint64 {
	t.Helper()
	log, err := guest.OpenLog(e.spec.Host, run)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	var text strings.Builder
	for {
		o, err := log.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text.Write(o.Data)
	}
	lines := strings.Split(text.String(), "\n")
	if len(lines) < 2 {
		return 0
	}
	n, err := strconv.ParseUint(lines[len(lines)-2], 10, 64)
	if err != nil {
		t.Fatalf("told %q", lines[len(lines)-2])
	}
	return n
}
