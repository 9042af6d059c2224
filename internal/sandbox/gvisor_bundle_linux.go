package sandbox

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// bundle is the part of an OCI runtime configuration that a gVisor sandbox
// needs, see config.md of opencontainers/runtime-spec.
type bundle struct {
	Version  string        `json:"ociVersion"`
	Hostname string        `json:"hostname"`
	Root     bundleRoot    `json:"root"`
	Process  bundleProcess `json:"process"`
	Mounts   []bundleMount `json:"mounts"`
	Linux    bundleLinux   `json:"linux"`
}

type bundleRoot struct {
	Path string `json:"path"`
}

type bundleProcess struct {
	Args            []string            `json:"args"`
	Env             []string            `json:"env"`
	Cwd             string              `json:"cwd"`
	User            bundleUser          `json:"user"`
	Capabilities    map[string][]string `json:"capabilities"`
	Rlimits         []bundleRlimit      `json:"rlimits"`
	NoNewPrivileges bool                `json:"noNewPrivileges"`
}

type bundleUser struct {
	UID   uint32 `json:"uid"`
	GID   uint32 `json:"gid"`
	Umask uint32 `json:"umask"`
}

type bundleRlimit struct {
	Type string `json:"type"`
	Hard uint64 `json:"hard"`
	Soft uint64 `json:"soft"`
}

type bundleMount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Source      string   `json:"source"`
	Options     []string `json:"options,omitempty"`
}

type bundleLinux struct {
	Namespaces  []bundleNamespace `json:"namespaces"`
	UIDMappings []bundleMapping   `json:"uidMappings"`
	GIDMappings []bundleMapping   `json:"gidMappings"`
}

type bundleNamespace struct {
	Type string `json:"type"`
}

type bundleMapping struct {
	ContainerID uint32 `json:"containerID"`
	HostID      uint32 `json:"hostID"`
	Size        uint32 `json:"size"`
}

// guestCapabilities is what the guest needs in gVisor's kernel: to start
// commands as another user, to signal them, to write what only root may, and
// to mount. None is a capability of the host, and commands get none.
var guestCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETGID",
	"CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE",
}

// Bounds of every process, and how many ids an environment has.
const (
	openFiles = 1 << 16
	idRange   = 1 << 16
)

// newBundle describes the sandbox of s whose mounts are attached below dir.
func newBundle(s Spec, dir string) bundle {
	ids := []bundleMapping{{ContainerID: 0, HostID: s.UIDBase, Size: idRange}}
	b := bundle{
		Version:  "1.2.1",
		Hostname: Hostname,
		Root:     bundleRoot{Path: filepath.Join(dir, rootName)},
		Process: bundleProcess{
			Args:            []string{"mayfly-guest", boot.GVisor},
			Env:             s.Env,
			Cwd:             "/",
			User:            bundleUser{Umask: 0o022},
			Capabilities:    map[string][]string{"bounding": guestCapabilities, "effective": guestCapabilities, "permitted": guestCapabilities},
			Rlimits:         []bundleRlimit{{Type: "RLIMIT_NOFILE", Hard: openFiles, Soft: openFiles}},
			NoNewPrivileges: true,
		},
		Mounts: []bundleMount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=1777", fmt.Sprintf("size=%d", sharedMemory(s.Limits.Memory))}},
		},
		Linux: bundleLinux{UIDMappings: ids, GIDMappings: ids},
	}
	for _, n := range []string{"user", "pid", "network", "ipc", "uts", "mount"} {
		b.Linux.Namespaces = append(b.Linux.Namespaces, bundleNamespace{Type: n})
	}
	b.bind(filepath.Join(dir, runsName), boot.RunsDir)
	b.bind(filepath.Join(dir, listenName), boot.SocketDir)
	for i, target := range s.targets() {
		b.bind(filepath.Join(dir, bindName(i)), target)
	}
	return b
}

// bind shows what is attached at source, which is read-only if it is to be.
func (b *bundle) bind(source, target string) {
	b.Mounts = append(b.Mounts, bundleMount{
		Destination: target, Type: "bind", Source: source,
		Options: []string{"rbind", "nosuid", "nodev"},
	})
}

func bindName(i int) string { return fmt.Sprintf("bind-%d", i) }

func (b bundle) write(dir string) error {
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600)
}
