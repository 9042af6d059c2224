//go:build linux

// Command probe tries one way out of an environment and says whether it was
// open. The escape suite runs it inside, where every door must be shut, and
// outside, where the same code must find the door open.
//
// It prints one line of JSON, {"open":…,"detail":"…"}, and exits 0 whatever it
// found. A probe that the kernel kills has found its door shut.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
)

// options are what the suite tells a probe about the world outside.
type options struct {
	path   string // a host file, directory or socket
	marker string // what proves that something of the host was seen
	name   string // of an abstract socket, a key, a host
	pid    int    // of a process outside, or of the guest
	addr   string // a network address outside
	count  int64  // how far a bomb goes
}

// A door is one way out. It returns whether it was open and what was seen.
type door func(options) (open bool, detail string)

// doors is filled by the files of this package, one subject each.
var doors = map[string]door{}

func add(m map[string]door) {
	for name, d := range m {
		if doors[name] != nil {
			panic("two doors named " + name)
		}
		doors[name] = d
	}
}

func main() {
	var o options
	flag.StringVar(&o.path, "path", "", "host path")
	flag.StringVar(&o.marker, "marker", "", "content that proves success")
	flag.StringVar(&o.name, "name", "", "name outside")
	flag.IntVar(&o.pid, "pid", 1, "process")
	flag.StringVar(&o.addr, "addr", "", "network address")
	flag.Int64Var(&o.count, "count", 0, "size of a bomb")
	userns := flag.Bool("userns", false, "try as root of a new user namespace and others")
	pidns := flag.Bool("pidns", false, "with -userns, in a new process namespace, too")
	list := flag.Bool("list", false, "name every door")
	flag.Parse()
	switch {
	case *list:
		fmt.Println(strings.Join(slices.Sorted(maps.Keys(doors)), "\n"))
		return
	case *userns:
		report(inUserNamespace(*pidns, os.Args[1:]))
		return
	}
	d := doors[flag.Arg(0)]
	if d == nil {
		fmt.Fprintf(os.Stderr, "probe: no door %q\n", flag.Arg(0))
		os.Exit(64)
	}
	report(d(o))
}

func report(open bool, detail string) {
	json.NewEncoder(os.Stdout).Encode(map[string]any{"open": open, "detail": detail})
}

// inUserNamespace runs the same probe as root of a user namespace with mount,
// network and ipc namespaces of its own.
func inUserNamespace(pidns bool, args []string) (bool, string) {
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return a == "-userns" || a == "-pidns" })
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	if pidns {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	}
	out, err := cmd.Output()
	if err != nil {
		return false, "user namespace: " + err.Error()
	}
	var r struct {
		Open   bool   `json:"open"`
		Detail string `json:"detail"`
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return false, "bad report: " + err.Error()
	}
	return r.Open, r.Detail
}

// denied reports whether err is the kernel's refusal, so that any other
// answer to a call with harmless arguments means that it would be carried out.
func denied(err error) bool {
	switch err {
	case syscall.EPERM, syscall.EACCES, syscall.ENOSYS, syscall.EROFS:
		return true
	}
	return false
}

// carriedOut judges a call whose arguments are chosen to be harmless.
func carriedOut(err error) (bool, string) {
	if err == nil || err == syscall.Errno(0) {
		return true, "succeeded"
	}
	return !denied(err), err.Error()
}
