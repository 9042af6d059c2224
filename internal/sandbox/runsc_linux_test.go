package sandbox

import (
	"debug/elf"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// executable writes an executable file of 64 bits that holds nothing; with
// interpreter, it asks for a dynamic linker.
func executable(t *testing.T, path string, interpreter bool) string {
	t.Helper()
	b := make([]byte, 64+56)
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	b[16], b[18], b[20] = byte(elf.ET_EXEC), byte(elf.EM_X86_64), 1
	b[32], b[52], b[54], b[56], b[58] = 64, 64, 56, 1, 64 // one program header after this one
	b[64] = byte(elf.PT_LOAD)
	if interpreter {
		b[64] = byte(elf.PT_INTERP)
	}
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func nowhere(t *testing.T) string {
	t.Helper()
	t.Setenv("MAYFLY_RUNSC", "")
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	places := runscPlaces
	runscPlaces = nil
	t.Cleanup(func() { runscPlaces = places })
	return dir
}

func TestRunscIsFoundWhereItIsNamed(t *testing.T) {
	dir := nowhere(t)
	inPath := executable(t, filepath.Join(dir, "runsc"), false)
	if got, err := FindRunsc(""); got != inPath || err != nil {
		t.Errorf("in the PATH: got = %q, %v, want %q", got, err, inPath)
	}
	byVariable := executable(t, filepath.Join(t.TempDir(), "one"), false)
	t.Setenv("MAYFLY_RUNSC", byVariable)
	if got, err := FindRunsc(""); got != byVariable || err != nil {
		t.Errorf("by variable: got = %q, %v, want %q", got, err, byVariable)
	}
	byOption := executable(t, filepath.Join(t.TempDir(), "two"), false)
	if got, err := FindRunsc(byOption); got != byOption || err != nil {
		t.Errorf("by option: got = %q, %v, want %q", got, err, byOption)
	}
}

func TestUselessRunscIsPassedOver(t *testing.T) {
	dir := nowhere(t)
	executable(t, filepath.Join(dir, "runsc"), true)
	good := executable(t, filepath.Join(t.TempDir(), "runsc"), false)
	runscPlaces = []string{good}
	if got, err := FindRunsc(""); got != good || err != nil {
		t.Errorf("got = %q, %v, want %q", got, err, good)
	}
}

func TestMissingRunscSaysHowToInstallIt(t *testing.T) {
	dir := nowhere(t)
	for name, path := range map[string]string{
		"none":      "",
		"not there": filepath.Join(dir, "runsc"),
		"no binary": "/etc/passwd",
		"dynamic":   executable(t, filepath.Join(dir, "dynamic"), true),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := FindRunsc(path)
			if !errors.Is(err, errors.ErrUnsupported) || mayfly.KindOf(err) != mayfly.Unsupported {
				t.Fatalf("got = %v, want unsupported", err)
			}
			var e *mayfly.Error
			if !errors.As(err, &e) || !strings.Contains(e.Fix, "CGO_ENABLED=0 GOBIN=/usr/local/bin go install "+RunscModule) {
				t.Errorf("hint = %q, want the command that installs it", e.Fix)
			}
		})
	}
}

func TestRunscWithoutItsSentrySaysSo(t *testing.T) {
	g := &GVisor{runsc: "/usr/local/bin/runsc"}
	err := g.explain(errors.New("exit status 128"), ` ("sidecar binary \"gvisor_sentry\" not found")`)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "gvisor_sentry") {
		t.Errorf("got = %v, want unsupported, naming what is missing", err)
	}
	if err := g.explain(errors.New("exit status 128"), " (\"no space left\")"); errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("got = %v, want another error", err)
	}
}
