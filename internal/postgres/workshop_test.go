package postgres

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// workshop runs programs in cages that have no network. What is on disk is as
// in a sandbox, and the files of this package are what is tested here; what
// SQL can reach is tested where the sandbox is.
type workshop struct {
	cage
	group *os.File // of the unified hierarchy, to start in; may be nil
}

// newWorkshop shows directories under other names.
func newWorkshop(dirs ...Dir) workshop {
	w := workshop{cage: cage{uid: testUID, gid: testUID}}
	for _, d := range dirs {
		w.show = append(w.show, bind{Dir: d})
	}
	return w
}

func (w workshop) Launch(_ context.Context, c Command) (Process, error) {
	p := &localProcess{ended: make(chan struct{})}
	p.cmd = &exec.Cmd{Path: c.Argv[0], Args: c.Argv, Env: c.Env, Dir: c.Dir, Stdout: &p.output, Stderr: &p.output}
	if w.group != nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(w.group.Fd())}
	}
	if err := w.start(p.cmd, p.ended); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (w workshop) Run(ctx context.Context, c Command, stdin io.Reader, output io.Writer) (string, error) {
	cmd := &exec.Cmd{Path: c.Argv[0], Args: c.Argv, Env: c.Env, Dir: c.Dir, Stdin: stdin, Stdout: output, Stderr: output}
	err := w.run(ctx, cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) && ctx.Err() == nil {
		return exit.String(), nil
	}
	return "", err
}

// localProcess is the first process of a PID namespace: all others in it end
// with it.
type localProcess struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{}
}

func (p *localProcess) Signal(_ context.Context, sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *localProcess) Kill(ctx context.Context) error {
	if err := p.Signal(ctx, unix.SIGKILL); err != nil {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

func (p *localProcess) Wait(ctx context.Context) (string, error) {
	select {
	case <-p.ended:
		if p.cmd.ProcessState.Success() {
			return "", nil
		}
		return p.cmd.ProcessState.String(), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (p *localProcess) Output(context.Context) string { return p.output.String() }
