package client

import (
	"context"
	"io"

	"mayfly.dev/mayfly"
)

// Graph implements mayfly.Recordings.
func (c *Client) Graph(ctx context.Context, run string) (mayfly.Graph, error) {
	return fetch[mayfly.Graph](ctx, c, get("runs", run, "graph"), nil)
}

// Exchanges implements mayfly.Recordings.
func (c *Client) Exchanges(ctx context.Context, run string) ([]mayfly.Exchange, error) {
	return fetch[[]mayfly.Exchange](ctx, c, get("runs", run, "exchanges"), nil)
}

// Content implements mayfly.Recordings.
func (c *Client) Content(ctx context.Context, digest string) (io.ReadCloser, error) {
	b, err := c.stream(ctx, get("contents", digest))
	if err != nil {
		return nil, err
	}
	return b, nil
}

// ForgetExact implements mayfly.Recordings.
func (c *Client) ForgetExact(ctx context.Context, run string) (mayfly.Run, error) {
	return fetch[mayfly.Run](ctx, c, post("runs", run, "forget"), nil)
}

// AddModel implements mayfly.Models.
func (c *Client) AddModel(ctx context.Context, r mayfly.AddModel) (mayfly.Model, error) {
	return fetch[mayfly.Model](ctx, c, post("models"), r)
}

// Model implements mayfly.Models.
func (c *Client) Model(ctx context.Context, ref string) (mayfly.Model, error) {
	return fetch[mayfly.Model](ctx, c, get("models", ref), nil)
}

// Models implements mayfly.Models.
func (c *Client) Models(ctx context.Context) ([]mayfly.Model, error) {
	return fetch[[]mayfly.Model](ctx, c, get("models"), nil)
}
