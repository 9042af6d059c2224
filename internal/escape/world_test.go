//go:build linux

package escape

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// world is the machine outside: things that an environment must not reach,
// each with the marker in it, and a way to run probes among them.
type world struct {
	dir   string // everyone may enter it
	probe string // the program
	vars  map[string]string
	// neighbour is the environment beside the one under test, if there is one.
	neighbour *environment
}

// nobody is the user of controls that need no privileges.
const nobody = 64321

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: the controls make devices, namespaces and setuid files")
	}
	dir, err := os.MkdirTemp("/tmp", "mayfly-escape-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	marker := "outside-" + rand.Text()
	name := "mayfly-" + strings.ToLower(rand.Text())
	hostname, err := os.Hostname()
	check(t, err)
	w := &world{dir: dir, probe: filepath.Join(dir, "probe"), vars: map[string]string{
		"dir": dir, "hostname": hostname, "marker": marker, "name": name,
	}}
	build := exec.Command("go", "build", "-o", w.probe, "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the probe: %v\n%s", err, out)
	}
	w.leave(t)
	w.files(t, marker, name)
	w.sockets(t, name)
	w.memory(t, name)
	w.vars["victim"] = strconv.Itoa(w.process(t, 0))
	w.vars["alone"] = strconv.Itoa(w.process(t, syscall.CLONE_NEWNET|syscall.CLONE_NEWUTS|syscall.CLONE_NEWIPC))
	return w
}

// leave leaves a descriptor open that every program started from here
// inherits, as a careless caller of the server might.
func (w *world) leave(t *testing.T) {
	t.Helper()
	fd, err := unix.Open(w.dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	check(t, err)
	t.Cleanup(func() { unix.Close(fd) })
}

func (w *world) files(t *testing.T, marker, name string) {
	t.Helper()
	for file, mode := range map[string]os.FileMode{"secret": 0o644, "open": 0o666, "hardlink": 0o644} {
		w.vars[file] = filepath.Join(w.dir, file)
		put(t, w.vars[file], marker+"\n", mode)
	}
	w.vars["read-only"] = filepath.Join(w.dir, "ro")
	check(t, os.Mkdir(w.vars["read-only"], 0o755))
	plant(t, w.probe, w.dir)
	for _, f := range []string{"device", "setuid", "capable"} {
		w.vars[f] = filepath.Join(w.dir, f)
	}
	for _, dir := range []string{"/tmp", "/dev/shm"} {
		put(t, filepath.Join(dir, name), marker, 0o644)
		t.Cleanup(func() { os.Remove(filepath.Join(dir, name)) })
	}
}

// plant puts what would raise privileges into a directory: a device node, and
// the probe with the setuid bit and with file capabilities.
func plant(t *testing.T, probe, dir string) {
	t.Helper()
	program, err := os.ReadFile(probe)
	check(t, err)
	for _, name := range []string{"setuid", "capable"} {
		put(t, filepath.Join(dir, name), string(program), 0o755)
	}
	check(t, os.Chmod(filepath.Join(dir, "setuid"), 0o755|os.ModeSetuid))
	// VFS_CAP_REVISION_2, effective, cap_net_raw; see capabilities(7).
	capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	check(t, unix.Setxattr(filepath.Join(dir, "capable"), "security.capability", capability, 0))
	device := filepath.Join(dir, "device")
	check(t, unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11)))) // the kernel's log
	check(t, os.Chmod(device, 0o666))
}

func (w *world) sockets(t *testing.T, name string) {
	t.Helper()
	w.vars["socket"] = filepath.Join(w.dir, "socket")
	w.vars["tcp"] = serve(t, "tcp4", "127.0.0.1:0")
	w.vars["tcp6"] = "[::1]:1" // where there is no IPv6, nothing listens
	if l, err := net.Listen("tcp6", "[::1]:0"); err == nil {
		l.Close()
		w.vars["tcp6"] = serve(t, "tcp6", "[::1]:0")
	}
	w.vars["address"] = serve(t, "tcp4", hostAddress()+":0")
	serve(t, "unix", w.vars["socket"])
	serve(t, "unix", "@"+name)
	check(t, os.Chmod(w.vars["socket"], 0o777))
}

// hostAddress is an address of the host other than the usual loopback one.
func hostAddress() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	return "127.0.0.2"
}

// serve accepts and closes connections until the test ends.
func serve(t *testing.T, network, addr string) string {
	t.Helper()
	l, err := net.Listen(network, addr)
	check(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String()
}

// memory makes kernel objects that have names of their own: a message queue,
// shared memory and a key.
func (w *world) memory(t *testing.T, name string) {
	t.Helper()
	p, err := unix.BytePtrFromString(name)
	check(t, err)
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), unix.O_CREAT|unix.O_RDWR, 0o666, 0, 0, 0)
	if errno != 0 {
		t.Fatalf("make a message queue: %v", errno)
	}
	unix.Close(int(fd))
	t.Cleanup(func() { unix.Syscall(unix.SYS_MQ_UNLINK, uintptr(unsafe.Pointer(p)), 0, 0) })

	key := 0x4d594650 + os.Getpid()
	w.vars["shmkey"] = strconv.Itoa(key)
	id, err := unix.SysvShmGet(key, 4096, unix.IPC_CREAT|0o666)
	check(t, err)
	t.Cleanup(func() { unix.SysvShmCtl(id, unix.IPC_RMID, nil) })

	ring, err := unix.AddKey("user", name, []byte("outside"), unix.KEY_SPEC_USER_KEYRING)
	check(t, err)
	t.Cleanup(func() { unix.KeyctlInt(unix.KEYCTL_UNLINK, ring, unix.KEY_SPEC_USER_KEYRING, 0, 0) })
}

// process starts a process outside with the marker in its arguments and its
// environment.
func (w *world) process(t *testing.T, namespaces uintptr) int {
	t.Helper()
	cmd := exec.Command(w.probe, "-marker", w.vars["marker"], "-count", "3600", "sleep")
	cmd.Env = []string{"SECRET=" + w.vars["marker"]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	check(t, cmd.Start())
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd.Process.Pid
}

// result is what a probe reports.
type result struct {
	Open   bool   `json:"open"`
	Detail string `json:"detail"`
}

// parse reads a probe's report; one that ended without was stopped.
func parse(out []byte, ended string) result {
	var r result
	if err := json.Unmarshal(bytes.TrimSpace(out), &r); err != nil {
		return result{Detail: "ended without a report: " + ended}
	}
	return r
}

// expand replaces the words in braces.
func (w *world) expand(args string) []string {
	var pairs []string
	for k, v := range w.vars {
		pairs = append(pairs, "{"+k+"}", v)
	}
	return strings.Fields(strings.NewReplacer(pairs...).Replace(args))
}

// outside runs a door's control.
func (w *world) outside(t *testing.T, d door) result {
	t.Helper()
	args := append(w.expand(d.args+" "+d.out), d.name)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.probe, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	switch d.control {
	case asRoot:
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
	case asAlone:
		cmd.SysProcAttr.Unshareflags = unix.CLONE_NEWNS
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID
	case asUser:
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
		cmd.Dir = "/"
	case asNeighbour:
		if w.neighbour != nil {
			return w.neighbour.try(t, d.tty, args)
		}
	case asMounted:
		script := `mount --bind "$0" "$0" && mount --bind "$0/ro" "$0/ro" && mount -o remount,bind,ro "$0/ro" && exec "$@"`
		cmd = exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", script, w.dir, w.probe}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	case asNetwork:
		return inNetwork(t, cmd)
	}
	if d.tty {
		return onTerminal(cmd)
	}
	if d.name == "inherited-fds" {
		dir, err := os.Open(w.dir)
		check(t, err)
		defer dir.Close()
		cmd.ExtraFiles = []*os.File{dir}
	}
	return outcome(cmd)
}

// onTerminal runs cmd as the owner of a new terminal.
func onTerminal(cmd *exec.Cmd) result {
	terminal, err := pty.Start(cmd)
	if err != nil {
		return result{Detail: err.Error()}
	}
	defer terminal.Close()
	out, _ := io.ReadAll(terminal) // ends with an error when the last user is gone
	return parse(out, fmt.Sprint(cmd.Wait()))
}

func outcome(cmd *exec.Cmd) result {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	return parse(out, fmt.Sprint(err, " ", stderr.String()))
}

// inNetwork runs cmd in a network whose loopback interface has the addresses
// of a metadata service and of a name server, both of which answer.
func inNetwork(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	done := make(chan result)
	go func() {
		// The thread ends with the goroutine, and the network with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{Detail: err.Error()}
			return
		}
		for label, addr := range map[string][]byte{"lo:1": {169, 254, 169, 254}, "lo:2": {192, 0, 2, 53}} {
			if err := address(label, addr); err != nil {
				done <- result{Detail: err.Error()}
				return
			}
		}
		web, err := net.Listen("tcp4", "169.254.169.254:80")
		if err != nil {
			done <- result{Detail: err.Error()}
			return
		}
		defer web.Close()
		names, err := net.ListenPacket("udp4", "192.0.2.53:53")
		if err != nil {
			done <- result{Detail: err.Error()}
			return
		}
		defer names.Close()
		done <- outcome(cmd)
	}()
	return <-done
}

// address sets up the loopback interface with another address.
func address(label string, addr []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, name := range []string{"lo", label} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if name == label {
			if err := ifr.SetInet4Addr(addr); err != nil {
				return err
			}
			if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, ifr); err != nil {
				return fmt.Errorf("add an address: %w", err)
			}
		}
		ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

func put(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(content), mode))
	check(t, os.Chmod(path, mode))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
