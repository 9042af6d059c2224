package main

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/gateway"
)

// shownProvider is an element of provider list --json. The key itself is never
// looked at.
type shownProvider struct {
	Name string `json:"name"`
	API  string `json:"api"`
	URL  string `json:"url"`
	Key  string `json:"key,omitempty"` // "variable NAME" or "file PATH"
}

func (a *app) providerCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "provider",
		Short:   "List the model APIs that agents reach",
		Long:    "Providers are the model APIs behind the gateway. They are set in providers.yaml\nin the state directory; docs/gateway.md says how.",
		Example: "  sudo mayfly provider list",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	c.AddCommand(a.providerListCommand())
	return c
}

func (a *app) providerListCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"},
		Short: "List the model APIs that agents reach",
		Long: `List the upstreams of the gateway, and where the key of each comes from; never
the keys. With --json: a list of objects with the fields name, api, url and key.`,
		Example: "  sudo mayfly provider list",
		Args:    arguments(0, 0),
	}
	asJSON := addJSON(c)
	c.RunE = func(*cobra.Command, []string) error {
		list, err := readProviders(filepath.Join(a.state, providersFile))
		if err != nil {
			return err
		}
		if *asJSON {
			return printList(list)
		}
		var rows [][]string
		for _, p := range list {
			rows = append(rows, []string{p.Name, p.API, p.Key, p.URL})
		}
		return table(os.Stdout, "NAME\tAPI\tKEY\tURL", rows)
	}
	return c
}

func readProviders(path string) (list []shownProvider, err error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, mayfly.Errorf(mayfly.Forbidden, "%s is for root alone", path).Hint("use sudo")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	providers, err := gateway.ParseProviders(path, text)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(providers)) {
		p := providers[name]
		shown := shownProvider{Name: p.Name, API: p.API, URL: p.URL.Redacted()}
		switch {
		case p.KeyEnv != "":
			shown.Key = "variable " + p.KeyEnv
		case p.KeyFile != "":
			shown.Key = "file " + p.KeyFile
		}
		list = append(list, shown)
	}
	return list, nil
}
