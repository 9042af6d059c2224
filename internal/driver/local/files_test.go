package local

import (
	"testing"
)

func (d *Driver) lay(files map[string]string) {
	d.files = map[string][]byte{}
	for name, content := range files {
		d.files[name] = []byte(content)
	}
	d.filesLayer = filesName(d.files)
}

func TestFilesLieUnderEveryEnvironment(t *testing.T) {
	d := open(t, "")
	d.lay(map[string]string{"/etc/tool/settings.json": "one\n", "/home/agent/.tool/sub/config": "two\n"})
	l := lock(t, "cat /etc/tool/settings.json ~/.tool/sub/config > seen")
	put(t, d, l)
	script := `cat seen; cd /; stat -c '%U %a %n %Y' etc etc/tool etc/tool/settings.json home home/agent home/agent/.tool home/agent/.tool/sub/config
		echo mine > ~/.tool/sub/config && cat ~/.tool/sub/config
		mv ~/.tool ~/.other && ls -A ~
		echo x 2>/dev/null > etc/tool/settings.json || echo refused`
	want := `one
two
root 755 etc 0
root 755 etc/tool 0
root 644 etc/tool/settings.json 0
root 755 home 0
agent 755 home/agent 0
agent 755 home/agent/.tool 0
agent 644 home/agent/.tool/sub/config 0
mine
.other
refused
`
	if got := output(t, d, l, "bash", "-c", script); got != want {
		t.Errorf("got = %s\nwant %s", got, want)
	}
	// A template that was made before they changed has the new ones.
	d.lay(map[string]string{"/etc/tool/settings.json": "three\n"})
	if got, want := output(t, d, l, "sh", "-c", "cat /etc/tool/settings.json; ls -A ~"), "three\n"; got != want {
		t.Errorf("after a change: got = %q, want %q", got, want)
	}
}

func TestLayerOfFilesIsNamedAfterThem(t *testing.T) {
	names := map[string]bool{}
	for _, files := range []map[string][]byte{
		{"/a": []byte("b")}, {"/a": []byte("c")}, {"/b": []byte("b")}, {"/a": []byte("b"), "/b": nil}, {"/a": nil, "/b": []byte("b")},
	} {
		names[filesName(files)] = true
	}
	if len(names) != 5 {
		t.Errorf("names: got = %d, want 5", len(names))
	}
}

func TestFilesOutsideAreRefused(t *testing.T) {
	for _, name := range []string{"a", "/", "/../a", "/a/../b", "/a/", ""} {
		if err := writeFiles(t.TempDir(), map[string][]byte{name: nil}); err == nil {
			t.Errorf("%q: got no error", name)
		}
	}
}
