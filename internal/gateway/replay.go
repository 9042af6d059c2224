package gateway

import (
	"context"
	"io"
	"net/http"
	"time"

	"mayfly.dev/mayfly"
)

// replay answers from a recording, or as the replay wants it where the request
// is not the recorded one.
func (c *call) replay(ctx context.Context) {
	c.x.Replayed = true
	if err := c.begin(); err != nil {
		c.deliver(answer{fed: nobody}, err)
		return
	}
	played, f := c.play()
	d := c.x.Divergence
	switch {
	case d != nil && c.adm.Replay.OnDivergence == mayfly.LiveOnDivergence:
		c.x.Replayed = false
		c.d.live.add(c.adm.Run)
		c.deliver(<-c.ask(ctx), nil)
	case f != nil:
		c.deliver(c.own(f), nil)
	default:
		c.deliver(c.recorded(ctx, played), nil)
	}
}

// play finds the recorded answer, and says what stands against serving it.
// Divergences are saved before anything follows from them.
func (c *call) play() (Played, *fault) {
	if c.d.g.player == nil {
		return Played{}, faultf(http.StatusServiceUnavailable, "there are no recordings here")
	}
	ctx, cancel := c.durable()
	defer cancel()
	var played Played
	err := guarded(func() (err error) {
		played, err = c.d.g.player.Answer(ctx, c.adm, c.x, c.request())
		return err
	})
	missing := mayfly.KindOf(err) == mayfly.NotFound
	if err != nil && !missing {
		return played, c.unplayed(err)
	}
	c.x.Divergence = played.Divergence
	if missing && c.x.Divergence == nil {
		c.x.Divergence = &mayfly.Divergence{Kind: "extra", Recorded: "no such request", Replayed: c.x.Method + " " + c.x.Path}
	}
	if c.x.Divergence == nil {
		return played, nil
	}
	d := *c.x.Divergence
	d.Number, d.Step = c.x.Number, c.x.Step
	c.x.Divergence = &d
	stop := c.stops(missing)
	if err := c.d.g.runs.Diverged(ctx, c.adm.Run, d, stop); err != nil {
		return played, c.unplayed(err)
	}
	if stop {
		return played, c.diverged(d)
	}
	return played, nil
}

// stops reports whether the divergence ends the run. A request without a
// recorded answer cannot be answered from the recording.
func (c *call) stops(missing bool) bool {
	switch c.adm.Replay.OnDivergence {
	case mayfly.LiveOnDivergence:
		return false
	case mayfly.ContinueOnDivergence:
		return missing
	}
	return true
}

func (c *call) unplayed(err error) *fault {
	c.x.Divergence = nil
	c.d.g.log.Error("a recorded answer cannot be served", "env", c.d.env, "run", c.adm.Run, "exchange", c.x.ID, "err", err)
	return faultf(http.StatusServiceUnavailable, "the recorded answer cannot be served")
}

// diverged is the fault that makes agents stop: the clients of each API give
// up at once on another status.
func (c *call) diverged(d mayfly.Divergence) *fault {
	status := http.StatusBadRequest
	if c.provider.API == anthropicName {
		status = http.StatusForbidden
	}
	where := ""
	if d.Path != "" {
		where = " at " + d.Path
	}
	f := faultf(status, "the replay differs from the recording of run %s: %s%s. The run ends here", c.adm.Replay.Run, d.Kind, where)
	f.reason = refused + "the replay differs from its recording"
	return f
}

// recorded feeds the tape from a recording, chunk by chunk.
func (c *call) recorded(ctx context.Context, p Played) answer {
	x := p.Exchange
	if x.Status == 0 {
		f := faultf(http.StatusBadGateway, "the recorded request got no answer")
		f.reason = x.Error
		return c.own(f)
	}
	header := withoutHops(http.Header(p.Content.Header))
	header.Del("Content-Length")
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		c.tape.end(c.rerun(ctx, p))
	}()
	a := answer{status: x.Status, header: header, length: -1, reason: x.Error, cut: wasCut(x.Error), fed: fed}
	if recordedLength := http.Header(p.Content.Header).Get("Content-Length"); recordedLength != "" && !a.cut {
		a.length = int64(len(p.Content.Body))
	}
	return a
}

// rerun writes the recorded chunks on the tape, at their recorded times if the
// replay wants that.
func (c *call) rerun(ctx context.Context, p Played) error {
	body := p.Content.Body
	var end time.Duration
	for _, chunk := range whole(p.Content.Chunks, len(body)) {
		if c.adm.Replay.Realtime && !c.await(ctx, chunk.After) {
			return context.Cause(ctx)
		}
		end = chunk.After
		if !c.tape.write(body[:chunk.Size]) {
			return io.ErrClosedPipe
		}
		body = body[chunk.Size:]
	}
	if whole := p.Exchange.End.Sub(p.Exchange.Start); c.adm.Replay.Realtime && whole > end && !c.await(ctx, whole) {
		return context.Cause(ctx)
	}
	return io.EOF
}

// await sleeps until so much time has passed since the exchange began.
func (c *call) await(ctx context.Context, after time.Duration) bool {
	t := time.NewTimer(after - c.d.g.now().Sub(c.x.Start))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// whole makes chunks cover a body of that size exactly: redacted bodies may be
// of another size than their chunks say.
func whole(chunks []mayfly.Chunk, size int) []mayfly.Chunk {
	var out []mayfly.Chunk
	for _, chunk := range chunks {
		chunk.Size = min(chunk.Size, size)
		if chunk.Size > 0 {
			out = append(out, chunk)
			size -= chunk.Size
		}
	}
	if size > 0 {
		out = append(out, mayfly.Chunk{Size: size})
	}
	return out
}
