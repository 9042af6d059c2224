//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"host-socket":      hostSocket,
		"abstract-socket":  func(o options) (bool, string) { return connects("unix", "@"+o.name) },
		"known-sockets":    knownSockets,
		"listed-sockets":   listedSockets,
		"imds":             func(o options) (bool, string) { return connects("tcp", "169.254.169.254:80") },
		"host-loopback":    func(o options) (bool, string) { return connects("tcp", o.addr) },
		"host-address":     func(o options) (bool, string) { return connects("tcp", o.addr) },
		"dns":              dns,
		"other-interfaces": otherInterfaces,
		"raw-socket":       socketDoor(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
		"packet-socket":    socketDoor(unix.AF_PACKET, unix.SOCK_RAW, 0x0300),
		"vsock-socket":     socketDoor(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
		"alg-socket":       socketDoor(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
		"xdp-socket":       socketDoor(unix.AF_XDP, unix.SOCK_RAW, 0),
		"netfilter":        socketDoor(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER),
		"audit":            socketDoor(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT),
		"uevents":          socketDoor(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_KOBJECT_UEVENT),
		"add-address":      addAddress,
	})
}

func connects(network, addr string) (bool, string) {
	c, err := net.DialTimeout(network, addr, 2*time.Second)
	if err != nil {
		return false, err.Error()
	}
	c.Close()
	return true, "connected to " + addr
}

func hostSocket(o options) (bool, string) {
	for _, p := range routes(o.path) {
		if len(p) > 107 {
			continue
		}
		if open, detail := connects("unix", p); open {
			return open, detail
		}
	}
	return false, "not reachable"
}

// knownSockets are the doors that other programs leave open on machines.
func knownSockets(o options) (bool, string) {
	for _, p := range []string{o.path, "/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
		"/run/crio/crio.sock", "/run/systemd/private", "/run/dbus/system_bus_socket", "/run/user/0/bus", "/run/mayfly.sock",
		"/var/lib/mayfly/mayfly.sock", "/run/mayfly/mayfly.sock", "/tmp/.X11-unix/X0", "/run/snapd.socket"} {
		if p == "" {
			continue
		}
		if open, detail := connects("unix", p); open {
			return open, detail
		}
	}
	return false, "none there"
}

// listedSockets connects to every listening unix socket that the kernel names
// and to every socket file that can be found. Whatever answers is somebody
// else's: the probe listens nowhere.
func listedSockets(options) (bool, string) {
	names := map[string]bool{}
	b, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 8 && (f[7][0] == '/' || f[7][0] == '@') {
			names[f[7]] = true
		}
	}
	for _, dir := range []string{"/run", "/var", "/tmp", "/dev", "/workspace", "/home"} {
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type()&os.ModeSocket != 0 {
				names[p] = true
			}
			return nil
		})
	}
	for n := range names {
		if open, detail := connects("unix", n); open {
			return open, detail
		}
	}
	return false, fmt.Sprintf("%d sockets", len(names))
}

// dns sends a question to a resolver on the internet; a datagram that leaves
// is enough to carry data out.
func dns(o options) (bool, string) {
	for _, server := range []string{o.addr, "8.8.8.8:53", "[2001:4860:4860::8888]:53"} {
		if server == "" {
			continue
		}
		c, err := net.DialTimeout("udp", server, time.Second)
		if err != nil {
			continue
		}
		_, err = c.Write([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1})
		if err != nil {
			c.Close()
			continue
		}
		// A port on which nobody listens refuses the next call.
		c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := c.Read(make([]byte, 512))
		c.Close()
		if n > 0 || os.IsTimeout(err) {
			return true, "sent to " + server
		}
	}
	return false, "no datagram left"
}

func otherInterfaces(options) (bool, string) {
	all, err := net.Interfaces()
	if err != nil {
		return false, err.Error()
	}
	var names []string
	for _, i := range all {
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 {
			names = append(names, i.Name)
		}
	}
	return len(names) > 0, strings.Join(names, " ")
}

func socketDoor(family, kind, protocol int) door {
	return func(options) (bool, string) {
		fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return false, err.Error()
		}
		unix.Close(fd)
		return true, "made a socket"
	}
}

// addAddress gives the loopback interface another address, with which the
// environment could pose as a service.
func addAddress(options) (bool, string) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err.Error()
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return false, err.Error()
	}
	if err := ifr.SetInet4Addr([]byte{127, 0, 0, 1}); err != nil {
		return false, err.Error()
	}
	const setAddress = 0x8916 // SIOCSIFADDR
	err = unix.IoctlIfreq(fd, setAddress, ifr)
	return err == nil, fmt.Sprint(err)
}
