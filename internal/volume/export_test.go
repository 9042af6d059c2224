//go:build linux

package volume

import "testing"

// Hosts are the file systems that pools are tested on.
var Hosts = hosts

// OpenOnHost makes a file system and opens a pool on it.
func OpenOnHost(t testing.TB, name string) Pool {
	h := hosts[name]
	return openPool(t, h.dir(t), Options{Kind: h.kind, ImageSize: 4 << 30})
}
