package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"sync/atomic"

	"mayfly.dev/mayfly"
)

// PutImage implements mayfly.Templates.
func (c *Client) PutImage(ctx context.Context, digest string, layout io.Reader) error {
	resp, err := c.upload(ctx, request{
		method: http.MethodPut, path: []string{"images", digest},
		header: http.Header{"Content-Type": {"application/x-tar"}},
	}, layout)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, maxError))
	return err
}

// PutTemplate implements mayfly.Templates.
func (c *Client) PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) (mayfly.Template, error) {
	body, contentType, err := templateForm(l, workspace)
	if err != nil {
		return mayfly.Template{}, err
	}
	resp, err := c.upload(ctx, request{
		method: http.MethodPut, path: []string{"templates", l.Template},
		header: http.Header{"Content-Type": {contentType}},
	}, body)
	if err != nil {
		return mayfly.Template{}, err
	}
	defer resp.Body.Close()
	t, err := readRecords(resp.Body, log)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return t, err
}

// templateForm is a multipart form around the workspace, which is read last
// and only once.
func templateForm(l mayfly.Lock, workspace io.Reader) (body io.Reader, contentType string, err error) {
	var before, after bytes.Buffer
	form := multipart.NewWriter(&before)
	part, err := form.CreatePart(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="lock"`}, "Content-Type": {"application/json"},
	})
	if err == nil {
		err = json.NewEncoder(part).Encode(l)
	}
	if err == nil {
		_, err = form.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {`form-data; name="workspace"; filename="workspace.tar"`}, "Content-Type": {"application/x-tar"},
		})
	}
	if err != nil {
		return nil, "", mayfly.Errorf(mayfly.Invalid, "encode lock: %w", err)
	}
	fmt.Fprintf(&after, "\r\n--%s--\r\n", form.Boundary())
	return io.MultiReader(&before, workspace, &after), form.FormDataContentType(), nil
}

// record is one line of the answer to an uploaded template.
type record struct {
	Output   []byte           `json:"output"`
	Template *mayfly.Template `json:"template"`
	Error    *mayfly.Error    `json:"error"`
}

// maxRecord bounds a line of records, in bytes.
const maxRecord = 4 << 20

func readRecords(r io.Reader, log io.Writer) (mayfly.Template, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxRecord)
	for lines.Scan() {
		var rec record
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil {
			return mayfly.Template{}, badStream(err)
		}
		switch {
		case rec.Error != nil:
			return mayfly.Template{}, rec.Error
		case rec.Template != nil:
			return *rec.Template, nil
		}
		if _, err := log.Write(rec.Output); err != nil {
			return mayfly.Template{}, err
		}
	}
	if err := lines.Err(); err != nil {
		return mayfly.Template{}, badStream(err)
	}
	return mayfly.Template{}, mayfly.Errorf(mayfly.Unavailable, "the server's answer was cut short")
}

// Template implements mayfly.Templates.
func (c *Client) Template(ctx context.Context, digest string) (mayfly.Template, error) {
	return fetch[mayfly.Template](ctx, c, get("templates", digest), nil)
}

// Templates implements mayfly.Templates.
func (c *Client) Templates(ctx context.Context) ([]mayfly.Template, error) {
	return fetch[[]mayfly.Template](ctx, c, get("templates"), nil)
}

// upload sends a long body on a connection of its own and returns a
// successful answer as soon as it begins: while the body is still on its way,
// and also when the server has stopped reading it. (http.Transport gives up
// an answer when the request cannot be written to its end.) An error of the
// body's own is what the caller gets.
func (c *Client) upload(ctx context.Context, q request, content io.Reader) (*http.Response, error) {
	src := &source{r: content}
	q.body = src
	r, err := q.build(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	u := &uploadBody{source: src, written: make(chan struct{}), ctx: ctx, conn: conn}
	u.stop = context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(u.written)
		if r.Write(conn) != nil && src.err.Load() != nil {
			conn.Close() // cut in the middle: the server must not take it for whole
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 64<<10), r)
	if err != nil {
		return nil, u.broken(err)
	}
	if resp.StatusCode >= 300 {
		defer u.Close()
		return nil, answerError(resp)
	}
	u.answer, resp.Body = resp.Body, u
	return resp, nil
}

// source remembers the error of the reader below it.
type source struct {
	r   io.Reader
	err atomic.Pointer[error]
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err.Store(&err)
	}
	return n, err
}

// uploadBody is the answer to an upload.
type uploadBody struct {
	answer  io.Reader
	source  *source
	written chan struct{} // closed when nothing more of the request is sent
	ctx     context.Context
	conn    net.Conn
	stop    func() bool
}

func (u *uploadBody) Read(p []byte) (int, error) {
	n, err := u.answer.Read(p)
	if err != nil && err != io.EOF {
		err = u.broken(err)
	}
	return n, err
}

func (u *uploadBody) Close() error {
	u.stop()
	return u.conn.Close()
}

// broken closes the connection and finds out why it broke.
func (u *uploadBody) broken(err error) error {
	u.Close()
	select {
	case <-u.written:
	case <-u.ctx.Done():
	}
	if own := u.source.err.Load(); own != nil && u.ctx.Err() == nil {
		return *own
	}
	return plain(u.ctx, err)
}
