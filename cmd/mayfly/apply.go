package main

import (
	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
)

// branchName is the branch that keeps a run's change unless another is named.
func branchName(e mayfly.Environment) string { return "mayfly/" + e.Name }

func (a *app) applyCommand() *cobra.Command { return &cobra.Command{Use: "apply ENV", Short: "x", RunE: group} }
