package mayfly

import "context"

// Service is everything a server does. The control engine and the HTTP client
// both implement it.
type Service interface {
	Environments
	Runs
	Snapshots
	Templates
	Events
	Recordings
	Models
	Info(ctx context.Context) (Info, error)
}

// Info describes a running server.
type Info struct {
	Version      string `json:"version"`
	Installation string `json:"installation"` // random id of the state directory
	State        string `json:"state"`        // the state directory
	PID          int    `json:"pid"`
	Volume       string `json:"volume"` // "btrfs", "reflink" or "plain"
	Environments int    `json:"environments"`
}

// Actor returns the user on whose behalf ctx acts, "unknown" when nobody said.
func Actor(ctx context.Context) string {
	if a, ok := ctx.Value(actorKey{}).(string); ok {
		return a
	}
	return "unknown"
}

// WithActor returns a context that acts on behalf of the named user.
func WithActor(ctx context.Context, actor string) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

type actorKey struct{}
