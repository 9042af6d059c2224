package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strconv"

	"mayfly.dev/mayfly"
)

// Events implements mayfly.Events.
func (c *Client) Events(ctx context.Context, f mayfly.EventFilter, yield func(mayfly.Event) error) error {
	q := get("events").set("environment", f.Environment).set("run", f.Run).setBool("follow", f.Follow)
	if f.After > 0 {
		q = q.set("after", strconv.FormatUint(f.After, 10))
	}
	b, err := c.stream(ctx, q)
	if err != nil {
		return err
	}
	defer b.Close()
	if f.Follow {
		err = readEventStream(b, yield)
	} else {
		err = readEventList(b, yield)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func readEventList(r io.Reader, yield func(mayfly.Event) error) error {
	d := json.NewDecoder(r)
	if _, err := d.Token(); err != nil {
		return badStream(err)
	}
	for d.More() {
		var e mayfly.Event
		if err := d.Decode(&e); err != nil {
			return badStream(err)
		}
		if err := yield(e); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return badStream(err)
}

// badStream says of an error, unless it has a kind, that the answer was cut
// or is not what it should be.
func badStream(err error) error {
	var e *mayfly.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return mayfly.Errorf(mayfly.Unavailable, "the server's answer was cut short")
	}
	return mayfly.Errorf(mayfly.Internal, "the server's answer is not understood: %w", err)
}

// maxEventLine bounds a line of an event stream, in bytes.
const maxEventLine = 4 << 20

// readEventStream reads server-sent events (HTML standard, section 9.2) as far
// as the server uses them: one data line per event, comments, and a last event
// of type "end" that says why there are no more.
func readEventStream(r io.Reader, yield func(mayfly.Event) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEventLine)
	var typ string
	var data []byte
	for lines.Scan() {
		line := lines.Bytes()
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "event":
			typ = string(value)
		case "data":
			data = bytes.Clone(value)
		case "":
			if len(line) > 0 || data == nil {
				continue // a comment, or the end of an event without data
			}
			if err := dispatch(typ, data, yield); err != nil {
				return err
			}
			typ, data = "", nil
		}
	}
	if err := lines.Err(); err != nil {
		return badStream(err)
	}
	return mayfly.Errorf(mayfly.Unavailable, "the server's event stream was cut short")
}

func dispatch(typ string, data []byte, yield func(mayfly.Event) error) error {
	switch typ {
	case "":
		var e mayfly.Event
		if err := json.Unmarshal(data, &e); err != nil {
			return badStream(err)
		}
		return yield(e)
	case "end":
		return parseError(data, "end of the event stream")
	}
	return nil
}
