package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
)

// version is set when mayfly is built.
var version = "0.1.0-dev"

// versions is the output of version --json.
type versions struct {
	Version string       `json:"version"`
	Go      string       `json:"go"`
	System  string       `json:"system"`
	Server  *mayfly.Info `json:"server,omitempty"` // of the running server
}

func (a *app) versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Long: `Print the version. With --json also that of Go, of the system, and what a
server that runs says of itself; none is started for this.`,
		Example: "  mayfly version\n  mayfly version --json | jq -r .server.version",
		Args:    arguments(0, 0),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if !*asJSON {
			_, err := fmt.Fprintf(os.Stdout, "mayfly %s\n", version)
			return err
		}
		v := versions{Version: version, Go: runtime.Version(), System: runtime.GOOS + "/" + runtime.GOARCH}
		if svc, err := a.running(); err == nil {
			if info, err := svc.Info(c.Context()); err == nil {
				v.Server = &info
			}
		}
		return printJSON(v)
	}
	return c
}
