package main

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/api"
	"mayfly.dev/mayfly/internal/api/apitest"
	"mayfly.dev/mayfly/internal/autostart"
	"mayfly.dev/mayfly/internal/unixsock"
)

// person is somebody at a terminal with mayfly.
type person struct {
	t        *testing.T
	keyboard *os.File // and screen
	tty      *os.File
	cmd      *exec.Cmd
	read     chan struct{} // closed at the end of the screen

	mu     sync.Mutex // guards screen
	screen bytes.Buffer
}

// sit starts a command line at a terminal of 24 rows and 80 columns.
func sit(t *testing.T, program, dir, state string, args ...string) *person {
	t.Helper()
	keyboard, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	pty.Setsize(tty, &pty.Winsize{Rows: 24, Cols: 80})
	p := &person{t: t, keyboard: keyboard, tty: tty, cmd: exec.Command(program, args...), read: make(chan struct{})}
	p.cmd.Dir, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = dir, tty, tty, tty
	p.cmd.Env = append(os.Environ(), "MAYFLY_STATE="+state, "TERM=xterm", "HOME="+dir)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.read)
		b := make([]byte, 4096)
		for {
			n, err := keyboard.Read(b)
			p.mu.Lock()
			p.screen.Write(b[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		tty.Close()
		keyboard.Close()
	})
	return p
}

func (p *person) seen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.screen.String()
}

func (p *person) await(text string) {
	p.t.Helper()
	for range 2000 {
		if strings.Contains(p.seen(), text) {
			return
		}
		pause()
	}
	p.t.Fatalf("%q did not appear within 20 s; the screen shows:\n%q", text, p.seen())
}

func (p *person) typed(keys string) {
	p.t.Helper()
	if _, err := p.keyboard.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// leave waits for the end and returns the exit status and all that was shown.
func (p *person) leave() (int, string) {
	p.t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	p.cmd.Wait()
	p.tty.Close() // the screen ends when nobody can write to it any more
	<-p.read
	return p.cmd.ProcessState.ExitCode(), p.seen()
}

// fakeInstallation serves environments in memory; the program is this test.
func fakeInstallation(t *testing.T) (program, dir, state string) {
	t.Helper()
	state, dir = t.TempDir(), t.TempDir()
	l, err := unixsock.Listen(filepath.Join(state, autostart.SocketName), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- api.New(apitest.New(), api.Options{Log: slog.New(slog.DiscardHandler), Grace: time.Second}).Serve(ctx, l)
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	test, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(t.TempDir(), "mayfly") // by this name it is mayfly, see TestMain
	if err := os.Symlink(test, program); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("one\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return program, dir, state
}

func TestTerminalGetsColoursAndNothingElse(t *testing.T) {
	program, dir, state := fakeInstallation(t)
	p := sit(t, program, dir, state, "run", "-q", "--", "echo", "\x1b]0;title\a\x1b[31mred\x1b[2J\x1b[0m")
	status, screen := p.leave()
	if status != 0 || !strings.Contains(screen, "\x1b[31mred\x1b[0m") || strings.Contains(screen, "title") || strings.Contains(screen, "\x1b[2J") {
		t.Errorf("status %d, screen %q, want red text alone", status, screen)
	}
}

func TestSummaryNamesTheChoicesWithin80Columns(t *testing.T) {
	program, dir, state := fakeInstallation(t)
	p := sit(t, program, dir, state, "run", "--name", "swift-otter", "--", "write", "b.txt", "two")
	status, screen := p.leave()
	if status != 0 {
		t.Fatalf("status %d, screen %q", status, screen)
	}
	for _, want := range []string{
		"swift-otter exited with status 0 after", "1 file changed (+1 -0)", "A b.txt", "mayfly diff swift-otter",
		"mayfly apply swift-otter --branch mayfly/swift-otter", "mayfly rollback swift-otter", "mayfly fork swift-otter", "mayfly env delete swift-otter",
	} {
		if !strings.Contains(screen, want) {
			t.Errorf("the summary lacks %q:\n%s", want, screen)
		}
	}
	for line := range strings.Lines(screen) {
		if n := len([]rune(strings.TrimSpace(line))); n > 80 && !strings.Contains(line, dir) {
			t.Errorf("%d columns: %s", n, line)
		}
	}
}

func TestDiffOnATerminalIsColouredAndSafe(t *testing.T) {
	program, dir, state := fakeInstallation(t)
	status, screen := sit(t, program, dir, state, "run", "-q", "--name", "work", "--", "write", "a.txt", "two\x1b[2J").leave()
	if status != 0 {
		t.Fatalf("status %d, screen %q", status, screen)
	}
	status, screen = sit(t, program, dir, state, "diff", "work").leave()
	if status != 0 || !strings.Contains(screen, "\x1b[32m+two^[[2J\x1b[0m") || !strings.Contains(screen, "\x1b[31m-one\x1b[0m") {
		t.Errorf("status %d, screen %q, want coloured lines with visible controls", status, screen)
	}
}

func termios(t *testing.T, tty *os.File) unix.Termios {
	t.Helper()
	v, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return *v
}

func TestInteractiveRunGetsKeysAndSizesAndGivesTheTerminalBack(t *testing.T) {
	program, dir, state := fakeInstallation(t)
	p := sit(t, program, dir, state, "run", "-q", "-it", "--name", "keys", "--", "key")
	before := termios(t, p.tty)
	for range 2000 {
		if termios(t, p.tty).Lflag&unix.ICANON == 0 {
			break
		}
		pause()
	}
	p.typed("\x03") // Ctrl-C is the command's
	p.await("key 3")
	p.cmd.Wait()
	if after := termios(t, p.tty); !reflect.DeepEqual(after, before) {
		t.Errorf("terminal = %+v, want %+v", after, before)
	}
	if status, screen := p.leave(); status != 0 {
		t.Errorf("status %d, screen %q", status, screen)
	}

	p = sit(t, program, dir, state, "run", "-q", "-it", "--", "sizes")
	p.await("24 80")
	pty.Setsize(p.keyboard, &pty.Winsize{Rows: 50, Cols: 132})
	p.await("50 132")
	if status, screen := p.leave(); status != 0 {
		t.Errorf("status %d, screen %q", status, screen)
	}
}

func TestTerminationGivesTheTerminalBack(t *testing.T) {
	program, dir, state := fakeInstallation(t)
	p := sit(t, program, dir, state, "run", "-q", "-it", "--", "wait")
	before := termios(t, p.tty)
	for range 2000 {
		if termios(t, p.tty).Lflag&unix.ICANON == 0 {
			break
		}
		pause()
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Wait()
	if after := termios(t, p.tty); !reflect.DeepEqual(after, before) {
		t.Errorf("terminal = %+v, want %+v", after, before)
	}
	if status, screen := p.leave(); status != 143 {
		t.Errorf("status %d, want 143; screen %q", status, screen)
	}
}

func TestShellIsInteractive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	program := filepath.Join(buildPrograms(t), "mayfly")
	dir, state := t.TempDir(), filepath.Join(t.TempDir(), "state")
	t.Cleanup(func() {
		if err := stopServer(state); err != nil {
			t.Error(err)
		}
	})
	status, screen := sit(t, program, dir, state, "env", "create", "--name", "work").leave()
	if status != 0 {
		t.Fatalf("status %d, screen %q", status, screen)
	}
	p := sit(t, program, dir, state, "shell", "work")
	p.typed("stty size; echo $((6*7)) in $PWD; exit 3\r")
	status, screen = p.leave()
	if status != 3 || !regexp.MustCompile(`24 80\r\n42 in /workspace`).MatchString(screen) {
		t.Errorf("status %d, screen %q, want 3 and the answers", status, screen)
	}
}
