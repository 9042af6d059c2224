package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"
)

const greeter = `package main

import (
	"fmt"
	"os"
)

func main() {
	dir, _ := os.Getwd()
	entries, _ := os.ReadDir(".")
	fmt.Printf("hello %s, in %s as %d, with:", os.Getenv("ORIGIN"), dir, os.Getuid())
	for _, e := range entries {
		if e.Name() == "file.txt" {
			fmt.Print(" ", e.Name())
		}
	}
	fmt.Println()
	if err := os.WriteFile("written", nil, 0o644); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
`

// makeImage writes an image archive whose one program tells where it is:
// image NAME FILE.
func makeImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: image NAME FILE")
	}
	dir, err := os.MkdirTemp(ts.Getenv("WORK"), "image")
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(dir, "main.go"), []byte(greeter), 0o644))
	build := exec.Command("go", "build", "-o", "greet", "main.go")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GO111MODULE=off")
	if out, err := build.CombinedOutput(); err != nil {
		ts.Fatalf("build: %v\n%s", err, out)
	}
	program, err := os.ReadFile(filepath.Join(dir, "greet"))
	ts.Check(err)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	ts.Check(w.WriteHeader(&tar.Header{Name: "bin/" + args[0], Mode: 0o755, Size: int64(len(program)), Typeflag: tar.TypeReg}))
	_, err = w.Write(program)
	ts.Check(err)
	ts.Check(w.Close())
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil }
	l, err := tarball.LayerFromOpener(open)
	ts.Check(err)
	img, err := mutate.AppendLayers(empty.Image, l)
	ts.Check(err)
	config, err := img.ConfigFile()
	ts.Check(err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Env: []string{"ORIGIN=from the image"}}
	img, err = mutate.ConfigFile(img, config)
	ts.Check(err)
	ts.Check(tarball.WriteToFile(ts.MkAbs(args[1]), nil, img))
}
