package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// GVisor is the Runtime that holds environments in a user-space kernel,
// gVisor's runsc. Commands see the same files, users and variables as under
// Native, but their system calls do not reach the host's kernel.
//
// On the host, a sandbox is a few ordinary processes of the environment's
// range of ids in the environment's control groups, so that all but its start
// and its socket is as for Native. A sandbox that runs out of memory ends as a
// whole.
type GVisor struct {
	*Native
	runsc string
	host  func(env string) string
}

// NewGVisor finds runsc, see FindRunsc. The error is errors.ErrUnsupported
// when it is missing.
func NewGVisor(o Options, runsc string) (*GVisor, error) {
	runsc, err := FindRunsc(runsc)
	if err != nil {
		return nil, err
	}
	if o.Host == nil {
		return nil, errors.New("no host directories: gVisor's state is in them")
	}
	n, err := NewNative(o)
	if err != nil {
		return nil, err
	}
	return &GVisor{Native: n, runsc: runsc, host: o.Host}, nil
}

// Names in the directory gvisorName of an environment's host directory.
const (
	gvisorName = "gvisor"
	rootName   = "root"   // where the root file system is attached, in nobody else's sight
	layerName  = "layer"  // lower layer with the guest's directories
	stateName  = "state"  // runsc's
	listenName = "socket" // directory that the guest makes its socket in
	configName = "guest.config"
)

// hostTasks is how many tasks on the host the sandbox may have for n tasks
// inside: gVisor keeps two processes for each, spare ones, and its own.
func hostTasks(n int64) int64 { return 4*n + 256 }

func (g *GVisor) Start(ctx context.Context, s Spec) error {
	if err := s.check(); err != nil {
		return err
	}
	if s.Host != g.host(s.Environment) {
		return fmt.Errorf("start sandbox: %s is not the host directory of %s", s.Host, s.Environment)
	}
	state, err := g.Inspect(ctx, s.Environment)
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	if state == Frozen {
		return nil
	}
	if state == Alive {
		alive, err := answers(ctx, s, g.Dial)
		if alive || err != nil {
			return err
		}
	}
	if state != Gone {
		if err := g.Stop(ctx, s.Environment); err != nil {
			return fmt.Errorf("start sandbox: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := g.start(ctx, s); err != nil {
		err = fmt.Errorf("start sandbox: %w", err)
		return errors.Join(err, g.Stop(context.WithoutCancel(ctx), s.Environment))
	}
	return nil
}

func (g *GVisor) start(ctx context.Context, s Spec) error {
	limits := s.Limits
	if limits.PIDs > 0 {
		limits.PIDs = hostTasks(max(limits.PIDs, minTasks))
	}
	if err := g.cgroups.Create(s.Environment, limits); err != nil {
		return err
	}
	if err := prepareHost(s); err != nil {
		return err
	}
	dir, err := g.prepare(s)
	if err != nil {
		return err
	}
	m, socket, err := g.assemble(s, dir)
	if err != nil {
		return err
	}
	defer m.close()
	if err := g.run(ctx, s, dir, m, socket); err != nil {
		return g.explain(err, lastWords(s.Host))
	}
	for {
		if alive, err := answers(ctx, s, g.Dial); alive || err != nil {
			return err
		}
		if _, populated, _, err := g.cgroups.Look(s.Environment); err != nil || !populated {
			return errors.Join(fmt.Errorf("the guest ended before it was ready%s", lastWords(s.Host)), err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for guest: %w%s", ctx.Err(), lastWords(s.Host))
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// explain turns what runsc says into an error. Newer releases want programs
// beside them, which go install does not build.
func (g *GVisor) explain(err error, words string) error {
	if strings.Contains(words, "sidecar binary") {
		return noRunsc("%s lacks the programs that belong beside it: %w%s", g.runsc, errors.ErrUnsupported, words)
	}
	return fmt.Errorf("runsc: %w%s", err, words)
}

// prepare makes the directory that the sandbox is described in, anew.
func (g *GVisor) prepare(s Spec) (string, error) {
	dir := filepath.Join(s.Host, gvisorName)
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("prepare sandbox: %w", err)
	}
	layer := filepath.Join(dir, layerName)
	for _, d := range []string{dir, layer, filepath.Join(layer, boot.Dir), filepath.Join(layer, boot.RunsDir),
		filepath.Join(layer, boot.SocketDir), filepath.Join(layer, boot.GroupDir),
		filepath.Join(dir, listenName), filepath.Join(dir, stateName)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return "", fmt.Errorf("prepare sandbox: %w", err)
		}
	}
	// The root directory of the topmost layer is everyone's root directory.
	if err := os.Chmod(layer, 0o755); err != nil {
		return "", fmt.Errorf("prepare sandbox: %w", err)
	}
	config := boot.Config{Hostname: Hostname, UID: UID, GID: GID, Env: s.Env, SharedMemory: sharedMemory(s.Limits.Memory)}
	if s.Limits.PIDs > 0 {
		config.Tasks = uint64(max(s.Limits.PIDs, minTasks))
	}
	if err := os.WriteFile(filepath.Join(dir, configName), boot.Append(nil, config), 0o600); err != nil {
		return "", fmt.Errorf("prepare sandbox: %w", err)
	}
	return dir, nil
}

// Listen implements Runtime. The network inside is gVisor's own: giving it one
// of the kernel's would bring the kernel within reach of commands.
func (g *GVisor) Listen(context.Context, Spec, int) (net.Listener, error) {
	return nil, mayfly.Errorf(mayfly.Unsupported, "the host does not see the network of a gVisor sandbox: %w", errors.ErrUnsupported)
}

// Dial connects to the guest's socket, which is made from within: whatever
// else is found under its name is left alone.
func (g *GVisor) Dial(ctx context.Context, s Spec) (net.Conn, error) {
	dir, err := unix.Open(filepath.Join(s.Host, gvisorName, listenName), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "no guest answers in environment %s: %w", s.Environment, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, socketName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "no guest answers in environment %s: %w", s.Environment, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return nil, errors.Join(fmt.Errorf("dial guest: %s is no socket", socketName), err)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", "/proc/self/fd/"+strconv.Itoa(fd))
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "no guest answers in environment %s: %w", s.Environment, err)
	}
	return conn, nil
}
