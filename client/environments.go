package client

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"mayfly.dev/mayfly"
)

// CreateEnvironment implements mayfly.Environments.
func (c *Client) CreateEnvironment(ctx context.Context, r mayfly.CreateEnvironment) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, post("environments"), r)
}

// Environment implements mayfly.Environments.
func (c *Client) Environment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, get("environments", ref), nil)
}

// Environments implements mayfly.Environments.
func (c *Client) Environments(ctx context.Context, f mayfly.EnvironmentFilter) ([]mayfly.Environment, error) {
	q := get("environments").setBool("deleted", f.Deleted)
	for _, k := range slices.Sorted(maps.Keys(f.Labels)) {
		q = q.set("label", k+"="+f.Labels[k])
	}
	return fetch[[]mayfly.Environment](ctx, c, q, nil)
}

// PauseEnvironment implements mayfly.Environments.
func (c *Client) PauseEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, post("environments", ref, "pause"), nil)
}

// ResumeEnvironment implements mayfly.Environments.
func (c *Client) ResumeEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, post("environments", ref, "resume"), nil)
}

// ExtendEnvironment implements mayfly.Environments.
func (c *Client) ExtendEnvironment(ctx context.Context, ref string, ttl time.Duration) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, post("environments", ref, "extend"), struct {
		TTL time.Duration `json:"ttl"`
	}{ttl})
}

// DeleteEnvironment implements mayfly.Environments.
func (c *Client) DeleteEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return fetch[mayfly.Environment](ctx, c, request{method: http.MethodDelete, path: []string{"environments", ref}}, nil)
}

// CreateSnapshot implements mayfly.Snapshots.
func (c *Client) CreateSnapshot(ctx context.Context, env, label string) (mayfly.Snapshot, error) {
	return fetch[mayfly.Snapshot](ctx, c, post("environments", env, "snapshots"), struct {
		Label string `json:"label,omitempty"`
	}{label})
}

// Snapshots implements mayfly.Snapshots.
func (c *Client) Snapshots(ctx context.Context, env string) ([]mayfly.Snapshot, error) {
	return fetch[[]mayfly.Snapshot](ctx, c, get("environments", env, "snapshots"), nil)
}

// DeleteSnapshot implements mayfly.Snapshots.
func (c *Client) DeleteSnapshot(ctx context.Context, env, snapshot string) (mayfly.Snapshot, error) {
	return fetch[mayfly.Snapshot](ctx, c,
		request{method: http.MethodDelete, path: []string{"environments", env, "snapshots", snapshot}}, nil)
}

// Rollback implements mayfly.Snapshots.
func (c *Client) Rollback(ctx context.Context, env, snapshot string, only mayfly.Side) (mayfly.Snapshot, error) {
	return fetch[mayfly.Snapshot](ctx, c, post("environments", env, "rollback"), struct {
		Snapshot string      `json:"snapshot,omitempty"`
		Only     mayfly.Side `json:"only,omitempty"`
	}{snapshot, only})
}

// Diff implements mayfly.Snapshots.
func (c *Client) Diff(ctx context.Context, r mayfly.DiffRequest) (io.ReadCloser, error) {
	q := get("environments", r.Environment, "diff").
		set("from", r.From).set("to", r.To).set("path", r.Path).set("format", r.Format)
	b, err := c.stream(ctx, q)
	if err != nil {
		return nil, err
	}
	return b, nil
}

// DiffRows implements mayfly.Snapshots.
func (c *Client) DiffRows(ctx context.Context, r mayfly.RowsRequest) (io.ReadCloser, error) {
	b, err := c.stream(ctx, get("environments", r.Environment, "rows").set("from", r.From).set("to", r.To).set("format", r.Format))
	if err != nil {
		return nil, err
	}
	return b, nil
}

// Hash implements mayfly.Snapshots.
func (c *Client) Hash(ctx context.Context, env, snapshot, path string) (string, error) {
	out, err := fetch[struct{ Digest string }](ctx, c, get("environments", env, "hash").set("snapshot", snapshot).set("path", path), nil)
	return out.Digest, err
}
