package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/guest/wire"
	"mayfly.dev/mayfly/internal/sandbox"
)

// service is a service of one environment.
type service struct {
	mayfly.LockedService
	h    driver.Handle
	spec driver.Spec
	uid  uint32
}

func serviceOf(h driver.Handle, s driver.Spec, name string) (service, error) {
	at := slices.IndexFunc(s.Services, func(l mayfly.LockedService) bool { return l.Name == name })
	if at < 0 {
		return service{}, fmt.Errorf("no service %q", name)
	}
	return service{s.Services[at], h, s, wire.FirstUID + uint32(at)}, nil
}

// inside is a service's data directory as its processes see it.
func (v service) inside() string { return path.Join(sandbox.DBDir, v.Name) }

// prefix begins the ids of a service's processes; what follows has no dash.
func (v service) prefix() string { return "svc-" + v.Name }

// Output of a service is kept of its last processes only.
const (
	serviceOutput    = 1 << 20
	serviceProcesses = 3
)

// StartService implements driver.Servicer.
func (d *Driver) StartService(ctx context.Context, h driver.Handle, s driver.Spec, name string) (process string, err error) {
	v, err := d.service(h, s, name)
	if err != nil {
		return "", err
	}
	limited, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	if process, err = d.startService(limited, v); err == nil {
		return process, nil
	}
	if limited.Err() != nil && ctx.Err() == nil {
		err = mayfly.Errorf(mayfly.Timeout, "the service %s is not ready after %v", v.Name, v.Timeout).
			Hint("raise its timeout in mayfly.yaml, or look at what it says:%s", d.said(v))
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
	defer cancel()
	if cleared := d.clear(undo, v); cleared != nil {
		d.log.Warn("end the processes of a service", "environment", h.Environment, "service", name, "error", cleared)
	}
	return "", err
}

// clearTimeout bounds how long the processes of a service may take to end.
const clearTimeout = 10 * time.Second

func (d *Driver) startService(ctx context.Context, v service) (process string, err error) {
	if v.hasSpare() {
		if process, err = d.takeSpare(ctx, v); process != "" || err != nil {
			return process, err
		}
		if err := d.dropSpare(ctx, v); err != nil {
			return "", err
		}
	}
	process, err = d.findProcess(ctx, v)
	if err != nil {
		return "", err
	}
	if process == "" {
		if err := d.clear(ctx, v); err != nil { // what an ended one left behind
			return "", err
		}
		if err := d.forgetProcesses(v); err != nil {
			return "", err
		}
		if err := d.fillData(ctx, v); err != nil {
			return "", err
		}
	}
	if v.Postgres != nil {
		return d.startDatabase(ctx, v, process)
	}
	if process == "" {
		process = mayfly.NewID(v.prefix(), time.Now())
		if err := d.startAs(ctx, v, process, v.Command); err != nil {
			return "", fmt.Errorf("start service %s: %w", v.Name, err)
		}
	}
	return process, d.awaitReady(ctx, v, process)
}

// filling marks, beside it, a directory that a service's init command has not
// filled yet. No service has a name with a dot.
func (v service) filling() string { return "." + v.Name + ".init" }

// isFilling reports whether what a service has in its directory is half made.
func (d *Driver) isFilling(v service) (bool, error) {
	_, err := os.Lstat(filepath.Join(d.pool.Live(v.h.Environment).DB, v.filling()))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// fillData makes a service's directory, and has its init command fill it if it
// is new. What an attempt that did not succeed left is removed.
func (d *Driver) fillData(ctx context.Context, v service) error {
	if len(v.Init) == 0 {
		return d.makeData(v, v.Name, 0o700)
	}
	root, err := os.OpenRoot(d.pool.Live(v.h.Environment).DB)
	if err != nil {
		return fmt.Errorf("open data of services: %w", err)
	}
	defer root.Close()
	half, err := d.isFilling(v)
	if err != nil {
		return err
	}
	if _, err := root.Lstat(v.Name); err == nil && !half {
		return nil
	}
	if err := root.WriteFile(v.filling(), nil, 0o600); err != nil {
		return err
	}
	if err := root.RemoveAll(v.Name); err != nil {
		return fmt.Errorf("remove half-made data of service %s: %w", v.Name, err)
	}
	if err := d.makeData(v, v.Name, 0o700); err != nil {
		return err
	}
	process := mayfly.NewID(v.prefix(), time.Now())
	if err := d.startAs(ctx, v, process, v.Init); err != nil {
		return fmt.Errorf("init of service %s: %w", v.Name, err)
	}
	exit, err := d.WaitProcess(ctx, v.h, process)
	if err != nil {
		return err
	}
	if exit.Code != 0 {
		return v.ended("init", exit.Code, exit.Reason, d.said(v))
	}
	if err := d.clear(ctx, v); err != nil { // what it left behind must not write any more
		return err
	}
	return root.Remove(v.filling())
}

// makeData makes a directory of a service's beside its siblings, where
// processes inside can make nothing.
func (d *Driver) makeData(v service, name string, mode fs.FileMode) error {
	root, err := os.OpenRoot(d.pool.Live(v.h.Environment).DB)
	if err != nil {
		return fmt.Errorf("open data of services: %w", err)
	}
	defer root.Close()
	if err := root.Mkdir(name, mode); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make data of service %s: %w", v.Name, err)
	}
	return errors.Join(root.Chown(name, int(v.uid), int(v.uid)), root.Chmod(name, mode))
}

// processes are the ids of the processes of a service, oldest first.
func (d *Driver) processes(v service) ([]string, error) {
	entries, err := os.ReadDir(d.runsDir(v.h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var ids []string
	waiting := d.waiting(v.h.Environment)
	for _, e := range entries {
		if rest, ok := strings.CutPrefix(e.Name(), v.prefix()+"-"); ok && !strings.Contains(rest, "-") && e.Name() != waiting {
			ids = append(ids, e.Name())
		}
	}
	return ids, err
}

// runsDir is where the guest records what it started.
func (d *Driver) runsDir(h driver.Handle) string {
	return filepath.Join(d.pool.Host(h.Environment), "runs")
}

// answerTimeout is how long a guest may take to say whether a process lives.
const answerTimeout = 10 * time.Second

// findProcess returns the process of a service that lives, as it may when the
// server was started anew.
func (d *Driver) findProcess(ctx context.Context, v service) (string, error) {
	ids, err := d.processes(v)
	if err != nil || len(ids) == 0 {
		return "", err
	}
	if half, err := d.isFilling(v); half || err != nil {
		return "", err // the last was to fill its directory
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	for _, id := range slices.Backward(ids) { // one that was a spare may be newer than what lives
		if _, err := guest.ReadExit(d.pool.Host(v.h.Environment), id); err == nil {
			continue
		}
		err := d.SignalProcess(ctx, v.h, id, 0)
		if mayfly.KindOf(err) != mayfly.NotFound {
			return id, err
		}
	}
	return "", nil
}

// forgetProcesses removes what is recorded of all but the last processes.
func (d *Driver) forgetProcesses(v service) error {
	ids, err := d.processes(v)
	if err != nil {
		return err
	}
	runs, err := os.OpenRoot(d.runsDir(v.h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer runs.Close()
	for _, id := range ids[:max(0, len(ids)-serviceProcesses+1)] {
		err = errors.Join(err, runs.RemoveAll(id))
	}
	return err
}

// stopServices ends every process of the services of a sandbox that runs, but
// for a spare. The Postgres whose place a spare is to take it does not wait for.
func (d *Driver) stopServices(ctx context.Context, h driver.Handle, s driver.Spec, sp *spare) error {
	seen, err := d.Inspect(ctx, h)
	if err != nil || seen.Sandbox != driver.SandboxAlive {
		return err
	}
	defer d.forgetDatabase(h.Environment, true)
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	for _, l := range s.Services {
		v, err := d.service(h, s, l.Name)
		if err == nil && sp != nil && sp.service.Name == l.Name {
			err = d.kill(ctx, v)
		} else if err == nil {
			err = d.clear(ctx, v)
		}
		if err != nil {
			return fmt.Errorf("stop service %s: %w", l.Name, err)
		}
	}
	return nil
}

// clear ends every process of a service.
func (d *Driver) clear(ctx context.Context, v service) error {
	conn, err := d.dial(ctx, v.h)
	if err != nil {
		return err
	}
	return guest.Clear(ctx, conn, v.uid)
}

// kill kills every process of a service.
func (d *Driver) kill(ctx context.Context, v service) error {
	conn, err := d.dial(ctx, v.h)
	if err != nil {
		return err
	}
	return guest.Kill(ctx, conn, v.uid)
}

// startAs starts a program as a service's user.
func (d *Driver) startAs(ctx context.Context, v service, process string, argv []string) error {
	t, err := d.template(v.spec.Template)
	if err != nil {
		return err
	}
	vars := map[string]string{"PATH": systemPath}
	if p, ok := t.ImageEnv["PATH"]; ok {
		vars["PATH"] = p
	}
	maps.Copy(vars, map[string]string{"HOME": v.inside(), "USER": v.Name, "LANG": "C.UTF-8", "TZ": "UTC"})
	for name, value := range v.Env {
		vars[name] = v.expand(value)
	}
	args := make([]string, len(argv))
	for i, a := range argv {
		args[i] = v.expand(a)
	}
	return d.launch(ctx, v, guest.Command{Run: process, Argv: args, Env: list(vars), Dir: v.inside()})
}

func (d *Driver) launch(ctx context.Context, v service, c guest.Command) error {
	conn, err := d.dial(ctx, v.h)
	if err != nil {
		return err
	}
	c.UID, c.Output = v.uid, cmp.Or(c.Output, serviceOutput)
	return guest.Start(ctx, conn, c)
}

// expand puts a service's directory and port into a text.
func (v service) expand(s string) string {
	return strings.NewReplacer("{data}", v.inside(), "{port}", strconv.Itoa(v.Port)).Replace(s)
}

// awaitReady returns when a service is ready.
func (d *Driver) awaitReady(ctx context.Context, v service, process string) error {
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		ready, err := d.isReady(ctx, v)
		if exit, recorded := guest.ReadExit(d.pool.Host(v.h.Environment), process); recorded == nil {
			return v.ended("command", exit.Code, exit.Reason, d.said(v))
		}
		if ready || err != nil {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// ended explains why a service is not there: its field, command or init, did
// not do.
func (v service) ended(field string, code int, reason, said string) error {
	what, how := "the service "+v.Name, "with status "+strconv.Itoa(code)
	if field == "init" {
		what = "init of the service " + v.Name
	}
	if reason != "" {
		how = "at once: " + reason
	}
	return mayfly.Errorf(mayfly.Invalid, "%s ended %s", what, how).
		Hint("correct its %s in mayfly.yaml; the last it said was:%s", field, said)
}

func (d *Driver) isReady(ctx context.Context, v service) (bool, error) {
	if len(v.Ready) == 0 {
		conn, err := d.dial(ctx, v.h)
		if err != nil {
			return false, err
		}
		return guest.Probe(ctx, conn, v.Port)
	}
	check := mayfly.NewID("rdy-"+v.Name, time.Now())
	if err := d.startAs(ctx, v, check, v.Ready); err != nil {
		return false, err
	}
	exit, err := d.WaitProcess(ctx, v.h, check)
	if err != nil {
		return false, err
	}
	runs, err := os.OpenRoot(d.runsDir(v.h))
	if err != nil {
		return false, err
	}
	defer runs.Close()
	if exit.Code == 126 || exit.Code == 127 {
		return false, mayfly.Errorf(mayfly.Invalid, "the service %s cannot be asked whether it is ready: %s", v.Name, exit.Reason).
			Hint("correct its field ready in mayfly.yaml")
	}
	return exit.Code == 0, runs.RemoveAll(check)
}

// said is the end of what a service has written, for people.
func (d *Driver) said(v service) string {
	ids, err := d.processes(v)
	if err != nil || len(ids) == 0 {
		return " nothing"
	}
	if text := d.output(v.h, ids[len(ids)-1]); text != "" {
		return "\n" + text
	}
	return " nothing"
}

// output is the end of what a process has written.
func (d *Driver) output(h driver.Handle, process string) string {
	log, err := guest.OpenLog(d.pool.Host(h.Environment), process)
	if err != nil {
		return ""
	}
	defer log.Close()
	var text []byte
	for {
		o, err := log.Recv()
		if err != nil {
			if err != io.EOF {
				d.log.Warn("read output of a service", "process", process, "error", err)
			}
			return strings.TrimSpace(string(text))
		}
		if text = append(text, o.Data...); len(text) > 4<<10 {
			text = text[len(text)-2<<10:]
		}
	}
}
