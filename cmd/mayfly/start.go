package main

import (
	"context"
	"os"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
	"mayfly.dev/mayfly/internal/autostart"
)

// idleExit is how long a server that was started on demand stays without
// anything to look after.
const idleExit = "10m"

// startServer starts a server in the background and waits until it answers.
func (a *app) startServer(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return mayfly.Errorf(mayfly.Forbidden,
			"no server runs for %s, and starting one needs root: it makes namespaces, mounts and cgroups", a.state).
			Hint("start it once with: sudo mayfly serve --daemon --state %s", shellWord(a.state))
	}
	program, err := os.Executable()
	if err != nil {
		return mayfly.Errorf(mayfly.Unavailable, "find the program to start as server: %w", err)
	}
	ping := client.New(a.socketPath())
	return autostart.Server{
		State:   a.state,
		Command: []string{program, "serve", "--state", a.state, "--idle-exit", idleExit},
		Env:     serverEnv(os.Environ()),
		Ready:   func(ctx context.Context) bool { return ping.Ping(ctx) == nil },
	}.Start(ctx)
}

// serverEnv is the part of the caller's environment that a server started on
// demand gets: it outlives the caller and serves others, so no secrets of his.
func serverEnv(environ []string) []string {
	env := []string{"LANG=C.UTF-8"}
	for _, kv := range environ {
		k, _, _ := strings.Cut(kv, "=")
		switch {
		case k == "PATH", k == "HOME", k == "TMPDIR", k == "GOCOVERDIR", k == "GOTRACEBACK",
			strings.HasPrefix(k, "MAYFLY_") && k != "MAYFLY_SOCKET" && k != "MAYFLY_STATE":
			env = append(env, kv)
		}
	}
	return env
}
