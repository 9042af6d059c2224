package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// stamp is a command that tells when it ran, in nanoseconds since 1970. Every
// system that is compared runs the same one, so that its own start is in all
// numbers alike.
var stamp = []string{"date", "+%s%N"}

// stamped is the time from start to the moment that the stamp's output tells.
func stamped(start time.Time, output string) (float64, error) {
	ns, err := strconv.ParseInt(strings.TrimSpace(output), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("stamp: %w", err)
	}
	return milliseconds(time.Unix(0, ns).Sub(start)), nil
}

// systemDirs are what the host base shows of the machine.
func systemDirs() []string {
	var dirs []string
	for _, d := range []string{"/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64"} {
		if _, err := os.Stat(d); err == nil {
			dirs = append(dirs, d)
		}
	}
	return dirs
}

// bwrapArgs start a command under bubblewrap with the same files inside as
// the host base has.
func bwrapArgs(workspace string, command ...string) []string {
	args := []string{"--unshare-all", "--die-with-parent"}
	for _, d := range systemDirs() {
		if target, err := os.Readlink(d); err == nil {
			args = append(args, "--symlink", target, d)
		} else {
			args = append(args, "--ro-bind", d, d)
		}
	}
	args = append(args, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--bind", workspace, "/workspace", "--chdir", "/workspace")
	return append(append(args, "--"), command...)
}

func bwrap(ctx context.Context, workspace string, command ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "bwrap", bwrapArgs(workspace, command...)...)
}

// bundle makes a runc bundle with the same files inside as the host base has,
// all namespaces, and the limits of an environment left to the defaults.
func bundle(dir, workspace string, command ...string) error {
	root := filepath.Join(dir, "rootfs")
	type mount struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options,omitempty"`
	}
	mounts := []mount{
		{"/proc", "proc", "proc", nil},
		{"/dev", "tmpfs", "tmpfs", []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{"/dev/pts", "devpts", "devpts", []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		{"/tmp", "tmpfs", "tmpfs", nil},
		{"/workspace", "bind", workspace, []string{"bind", "rw"}},
	}
	for _, d := range append(systemDirs(), "/proc", "/dev", "/tmp", "/workspace") {
		if target, err := os.Readlink(d); err == nil {
			if err := os.MkdirAll(root, 0o755); err != nil {
				return err
			}
			if err := os.Symlink(target, root+d); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(root+d, 0o755); err != nil {
			return err
		}
		if d == "/usr" || d == "/etc" || strings.HasPrefix(d, "/lib") || d == "/bin" || d == "/sbin" {
			mounts = append(mounts, mount{d, "bind", d, []string{"rbind", "ro"}})
		}
	}
	var namespaces []map[string]string
	for _, ns := range []string{"pid", "network", "ipc", "uts", "mount", "cgroup"} {
		namespaces = append(namespaces, map[string]string{"type": ns})
	}
	config := map[string]any{
		"ociVersion": "1.0.2",
		"process": map[string]any{
			"user": map[string]int{"uid": 1000, "gid": 1000}, "args": command, "cwd": "/workspace",
			"env": []string{"PATH=/usr/local/bin:/usr/bin:/bin"}, "noNewPrivileges": true,
		},
		"root":     map[string]any{"path": "rootfs", "readonly": true},
		"hostname": "runc",
		"mounts":   mounts,
		"linux":    map[string]any{"namespaces": namespaces},
	}
	b, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644)
}

// runc runs a bundle once.
func runc(ctx context.Context, dir, state, id string) *exec.Cmd {
	return exec.CommandContext(ctx, "runc", "--root", state, "run", "--bundle", dir, id)
}

// whole is how long a command takes, from fork to its end.
func whole(cmd *exec.Cmd) (float64, error) {
	start := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, out)
	}
	return milliseconds(time.Since(start)), nil
}

// first is how long a command takes to the moment that its stamp tells.
func first(cmd *exec.Cmd) (float64, error) {
	start := time.Now()
	out, err := cmd.Output()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return stamped(start, string(out))
}
