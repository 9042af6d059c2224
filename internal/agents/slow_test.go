//go:build agents && agents_all

package agents

func init() { slow = true }
