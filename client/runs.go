package client

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/attach"
)

// StartRun implements mayfly.Runs.
func (c *Client) StartRun(ctx context.Context, r mayfly.StartRun) (mayfly.Run, error) {
	return fetch[mayfly.Run](ctx, c, post("runs"), r)
}

// Run implements mayfly.Runs.
func (c *Client) Run(ctx context.Context, id string) (mayfly.Run, error) {
	return fetch[mayfly.Run](ctx, c, get("runs", id), nil)
}

// Runs implements mayfly.Runs.
func (c *Client) Runs(ctx context.Context, f mayfly.RunFilter) ([]mayfly.Run, error) {
	return fetch[[]mayfly.Run](ctx, c, get("runs").set("environment", f.Environment), nil)
}

// WaitRun implements mayfly.Runs.
func (c *Client) WaitRun(ctx context.Context, id string) (mayfly.Run, error) {
	return fetch[mayfly.Run](ctx, c, get("runs", id, "wait"), nil)
}

// KillRun implements mayfly.Runs.
func (c *Client) KillRun(ctx context.Context, id string) (mayfly.Run, error) {
	return fetch[mayfly.Run](ctx, c, post("runs", id, "kill"), nil)
}

// AttachRun implements mayfly.Runs. The attachment has a connection of its
// own, which the end of ctx closes.
func (c *Client) AttachRun(ctx context.Context, id string, follow bool) (mayfly.Attachment, error) {
	return c.attach(ctx, get("runs", id, "attach"), follow)
}

// AttachService implements mayfly.Environments, as AttachRun does.
func (c *Client) AttachService(ctx context.Context, ref, service string, follow bool) (mayfly.Attachment, error) {
	return c.attach(ctx, get("environments", ref, "services", service, "attach"), follow)
}

func (c *Client) attach(ctx context.Context, q request, follow bool) (mayfly.Attachment, error) {
	q = q.set("follow", strconv.FormatBool(follow))
	q.header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {attach.Protocol}}
	r, err := q.build(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	br := bufio.NewReaderSize(conn, 64<<10)
	if err := upgrade(r, conn, br); err != nil {
		stop()
		conn.Close()
		return nil, plain(ctx, err)
	}
	return &attachment{attach.New(conn, br), ctx, stop}, nil
}

func upgrade(r *http.Request, conn net.Conn, br *bufio.Reader) error {
	if err := r.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(br, r)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		return answerError(resp)
	}
	if !strings.EqualFold(resp.Header.Get("Upgrade"), attach.Protocol) {
		return mayfly.Errorf(mayfly.Internal, "the server upgraded to %q", resp.Header.Get("Upgrade"))
	}
	return nil
}

// attachment tells the end of its context from a broken connection.
type attachment struct {
	mayfly.Attachment
	ctx  context.Context
	stop func() bool
}

func (a *attachment) Recv() (mayfly.Output, error) {
	o, err := a.Attachment.Recv()
	if err != nil && a.ctx.Err() != nil {
		err = context.Cause(a.ctx)
	}
	return o, err
}

func (a *attachment) Close() error {
	a.stop()
	return a.Attachment.Close()
}
