// Package client is a mayfly.Service that a server provides over its unix
// socket.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/unixsock"
)

// Client talks to the server at a socket. It connects when it is first used
// and again whenever it has to. Its methods may be called at the same time.
// Errors are *mayfly.Error with the kinds that the server gave them; without a
// server they are of kind mayfly.Unavailable.
type Client struct {
	// Start, when set, is called if nobody listens on the socket. When it
	// returns nil, the client dials again.
	Start func(ctx context.Context) error

	socket string
	http   http.Client
	start  sync.Mutex // one Start at a time
}

var _ mayfly.Service = (*Client)(nil)

// New makes a client of the server at socketPath.
func New(socketPath string) *Client {
	c := &Client{socket: socketPath}
	c.http.Transport = &http.Transport{
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		DisableCompression: true,
		MaxIdleConns:       4,
		IdleConnTimeout:    30 * time.Second,
	}
	return c
}

// Close closes idle connections.
func (c *Client) Close() error {
	c.http.CloseIdleConnections()
	return nil
}

// Ping reports whether the server answers, without starting one.
func (c *Client) Ping(ctx context.Context) error {
	conn, err := unixsock.Dial(ctx, c.socket)
	if err != nil {
		return c.dialError(err)
	}
	return conn.Close()
}

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := unixsock.Dial(ctx, c.socket)
	if err == nil {
		return conn, nil
	}
	if c.Start == nil || !nobodyListens(err) {
		return nil, c.dialError(err)
	}
	c.start.Lock()
	defer c.start.Unlock()
	if conn, err := unixsock.Dial(ctx, c.socket); err == nil {
		return conn, nil // another goroutine has started one
	}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	if conn, err = unixsock.Dial(ctx, c.socket); err != nil {
		return nil, c.dialError(err)
	}
	return conn, nil
}

func nobodyListens(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

func (c *Client) dialError(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, fs.ErrPermission):
		return mayfly.Errorf(mayfly.Forbidden, "no permission to use %s", c.socket).
			Hint("use sudo, or become a member of the group mayfly: sudo usermod -aG mayfly $USER")
	case nobodyListens(err):
		return mayfly.Errorf(mayfly.Unavailable, "no server answers at %s", c.socket).Hint("start one with: sudo mayfly serve")
	}
	return mayfly.Errorf(mayfly.Unavailable, "connect to the server: %w", err)
}

// Bounds of what the client reads from a server.
const (
	maxAnswer = 64 << 20 // bytes of a JSON answer
	maxError  = 64 << 10 // bytes of an error
)

// request is a call to the server.
type request struct {
	method string
	path   []string // segments below /v1
	query  url.Values
	header http.Header
	body   io.Reader
}

// build makes the HTTP request. References go into the path, so that one that
// would change its meaning is refused here.
func (q request) build(ctx context.Context) (*http.Request, error) {
	path := "/v1"
	for _, s := range q.path {
		if s == "" || s == "." || s == ".." {
			return nil, mayfly.Errorf(mayfly.Invalid, "bad reference %q", s).Hint("give an id or a name")
		}
		path += "/" + url.PathEscape(s)
	}
	if len(q.query) > 0 {
		path += "?" + q.query.Encode()
	}
	r, err := http.NewRequestWithContext(ctx, q.method, "http://mayfly"+path, q.body)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad request: %w", err)
	}
	for k, v := range q.header {
		r.Header[k] = v
	}
	return r, nil
}

// do sends a request and returns a successful answer, whose body the caller
// closes.
func (c *Client) do(ctx context.Context, q request) (*http.Response, error) {
	r, err := q.build(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, plain(ctx, err)
	}
	if resp.StatusCode >= 300 {
		defer resp.Body.Close()
		return nil, answerError(resp)
	}
	return resp, nil
}

// plain takes an error out of what net/http wrapped around it.
func plain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e *mayfly.Error
	if errors.As(err, &e) {
		return e
	}
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return mayfly.Errorf(mayfly.Unavailable, "the connection to the server broke: %w", err)
}

// answerError is the error that an unsuccessful answer holds.
func answerError(resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return mayfly.Errorf(mayfly.Unavailable, "the connection to the server broke: %w", err)
	}
	return parseError(b, resp.Status)
}

func parseError(b []byte, what string) error {
	var e mayfly.Error
	if json.Unmarshal(b, &e) != nil || e.Kind == "" {
		return mayfly.Errorf(mayfly.Internal, "the server gave an answer that is no mayfly error: %s", what).
			Hint("is the server of the same version? mayfly version --json")
	}
	return &e
}

// call sends in as JSON, unless it is nil, and reads the answer into out.
func (c *Client) call(ctx context.Context, q request, in, out any) error {
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return mayfly.Errorf(mayfly.Invalid, "encode request: %w", err)
		}
		q.body, q.header = bytes.NewReader(b), http.Header{"Content-Type": {"application/json"}}
	}
	resp, err := c.do(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return plain(ctx, err)
	}
	if len(b) > maxAnswer {
		return mayfly.Errorf(mayfly.Internal, "the server's answer is over %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return mayfly.Errorf(mayfly.Internal, "the server's answer is not understood: %w", err).
			Hint("is the server of the same version? mayfly version --json")
	}
	return nil
}

func get(path ...string) request  { return request{method: http.MethodGet, path: path} }
func post(path ...string) request { return request{method: http.MethodPost, path: path} }

// fetch is call with the answer as result.
func fetch[T any](ctx context.Context, c *Client, q request, in any) (T, error) {
	var out T
	err := c.call(ctx, q, in, &out)
	return out, err
}

// set adds a query parameter unless it is empty.
func (q request) set(name, value string) request {
	if value == "" {
		return q
	}
	if q.query == nil {
		q.query = url.Values{}
	}
	q.query.Add(name, value)
	return q
}

func (q request) setBool(name string, value bool) request {
	if !value {
		return q
	}
	return q.set(name, strconv.FormatBool(value))
}

// Info implements mayfly.Service.
func (c *Client) Info(ctx context.Context) (mayfly.Info, error) {
	return fetch[mayfly.Info](ctx, c, get("info"), nil)
}

// body is a streamed answer. Its Read returns what the server says went wrong
// after it had begun.
type body struct {
	ctx  context.Context
	resp *http.Response
}

const trailerError = "Mayfly-Error"

func (b *body) Read(p []byte) (int, error) {
	n, err := b.resp.Body.Read(p)
	if err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return n, plain(b.ctx, err)
	}
	if late := b.resp.Trailer.Get(trailerError); late != "" {
		return n, parseError([]byte(late), fmt.Sprintf("trailer %q", late))
	}
	return n, io.EOF
}

func (b *body) Close() error { return b.resp.Body.Close() }

// stream returns the body of a successful answer.
func (c *Client) stream(ctx context.Context, q request) (*body, error) {
	resp, err := c.do(ctx, q)
	if err != nil {
		return nil, err
	}
	return &body{ctx, resp}, nil
}
