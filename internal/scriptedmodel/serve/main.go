// Command serve runs a command beside a scripted model, which it can reach on
// the loopback, and ends with the command's exit status.
//
//	serve -script script.json -listen 127.0.0.1:4000 -- claude -p "…"
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"

	"mayfly.dev/mayfly/internal/scriptedmodel"
)

func main() {
	script := flag.String("script", "script.json", "what the model does")
	listen := flag.String("listen", "127.0.0.1:4000", "address of the model")
	requests := flag.String("requests", "", "file for the requests, a JSON object a line")
	flag.Parse()
	status, err := run(*script, *listen, *requests, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "serve:", err)
	}
	os.Exit(status)
}

func run(script, listen, requests string, command []string) (int, error) {
	if len(command) == 0 {
		return 64, errors.New("name a command after --")
	}
	data, err := os.ReadFile(script)
	if err != nil {
		return 66, err
	}
	parsed, err := scriptedmodel.ParseScript(data)
	if err != nil {
		return 65, err
	}
	model := &scriptedmodel.Server{Script: parsed}
	if requests != "" {
		f, err := os.Create(requests)
		if err != nil {
			return 73, err
		}
		defer f.Close()
		model.Requests = f
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return 69, err
	}
	server := &http.Server{Handler: model}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	runErr := cmd.Run()
	// Requests that are still open belong to a command that is gone.
	server.Shutdown(expired())
	server.Close()
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return 69, err
	}
	var exit *exec.ExitError
	if errors.As(runErr, &exit) {
		if code := exit.ExitCode(); code >= 0 {
			return code, nil
		}
		return 1, runErr
	}
	if runErr != nil {
		return 127, runErr
	}
	return 0, nil
}

// expired is a context that waits for nothing.
func expired() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
