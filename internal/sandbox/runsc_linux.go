package sandbox

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"mayfly.dev/mayfly"
)

// RunscModule is the version of gVisor that mayfly is tested with.
const RunscModule = "gvisor.dev/gvisor/runsc@v0.0.0-20260905035102-160fafc42237"

// runscPlaces is where runsc is looked for after the PATH.
var runscPlaces = []string{"/usr/local/bin/runsc", "/opt/gvisor/bin/runsc"}

// FindRunsc returns the path of a runsc that can hold environments: path, or
// when that is empty, the one that the variable MAYFLY_RUNSC names, the one
// in the PATH, or one in the usual places. The error is
// errors.ErrUnsupported when there is none.
func FindRunsc(path string) (string, error) {
	if path == "" {
		path = os.Getenv("MAYFLY_RUNSC")
	}
	if path != "" {
		return checkRunsc(path)
	}
	places := runscPlaces
	if found, err := exec.LookPath("runsc"); err == nil {
		places = append([]string{found}, places...)
	}
	var first error
	for _, p := range places {
		if _, err := os.Stat(p); err != nil {
			continue
		}
		found, err := checkRunsc(p)
		if err == nil {
			return found, nil
		}
		if first == nil {
			first = err
		}
	}
	if first != nil {
		return "", first
	}
	return "", noRunsc("gVisor is not installed: no runsc found: %w", errors.ErrUnsupported)
}

// checkRunsc refuses a runsc that needs shared libraries: it starts itself
// again where there are none, and then fails without saying why.
func checkRunsc(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", noRunsc("%s is no runsc: %w", path, errors.Join(errors.ErrUnsupported, err))
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", noRunsc("%s is linked dynamically and cannot start sandboxes: %w", path, errors.ErrUnsupported)
		}
	}
	return path, nil
}

func noRunsc(format string, args ...any) error {
	return mayfly.Errorf(mayfly.Unsupported, format, args...).Hint("%s", RunscInstall)
}

// RunscInstall is the command that installs runsc.
var RunscInstall = fmt.Sprintf("install it with: CGO_ENABLED=0 GOBIN=/usr/local/bin go install %s (or name another with MAYFLY_RUNSC)", RunscModule)
