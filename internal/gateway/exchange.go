package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// call is one exchange on its way.
type call struct {
	d        *door
	w        http.ResponseWriter
	out      *http.ResponseController
	r        *http.Request
	adm      Admission
	provider Provider
	rest     string // of the path
	header   http.Header
	body     []byte // of the request
	said     func() modelapi.Request
	side     bool // no step of its own
	unwell   bool // the answer says that something went wrong
	x        mayfly.Exchange
	attempt  *attempt
	tape     *tape
	stop     context.CancelCauseFunc // ends what feeds the tape
}

// answer is what the agent gets: the body comes from the call's tape.
type answer struct {
	status int
	header http.Header
	length int64           // of the body; -1 when nobody knows
	reason string          // Exchange.Error, when it is known from the start
	cut    bool            // end as the recorded answer did: early
	fed    <-chan struct{} // closed when nothing writes on the tape any more
}

// model serves a request that goes to a model API.
func (d *door) model(w http.ResponseWriter, r *http.Request, rt route) {
	start := d.g.now()
	p, ok := d.g.o.Providers.lookup(rt.provider)
	if !ok {
		f := faultf(http.StatusNotFound, "there is no upstream %q; known: %s", rt.provider, strings.Join(d.g.o.Providers.names(), ", "))
		f.write(w, openaiName)
		return
	}
	api, f := identify(r, rt, p)
	if f != nil {
		f.write(w, p.API)
		return
	}
	if isProbe(r) {
		return // an empty answer says that somebody is there
	}
	adm, f := d.admit(r)
	if f == nil {
		f = refuseUpgrade(r)
	}
	var body []byte
	if f == nil {
		if body, f = d.readBody(w, r); f == nil {
			defer d.done(body)
		}
	}
	if f != nil {
		f.write(w, p.API)
		return
	}
	c := &call{
		d: d, w: w, out: http.NewResponseController(w), r: r, adm: adm, provider: p, rest: rt.rest,
		header: cleanHeader(r.Header), body: body,
		tape: newTape(start, d.g.now, d.g.o.MaxAnswer),
		x: mayfly.Exchange{
			ID: mayfly.NewID("x", start), Environment: adm.Environment, Run: adm.Run, Start: start,
			Provider: p.Name, API: api, Method: r.Method, RequestSize: int64(len(body)),
		},
	}
	c.serve()
}

// identify names the API of a request, and refuses those paths that no model
// API has: the real key opens more doors than agents need.
func identify(r *http.Request, rt route, p Provider) (string, *fault) {
	api, ok := modelapi.Identify(r.Method, rt.rest)
	family, _, _ := strings.Cut(api, ".")
	if ok && (api == modelapi.Other || family == p.API) {
		return api, nil
	}
	return "", faultf(http.StatusNotFound, "%s %s is not a path of a model API that passes here; these are: %s",
		r.Method, r.URL.Path, strings.Join(modelapi.Paths(), ", "))
}

// isProbe reports whether the request only asks if anybody is there, as Claude
// Code does when it starts, and shows no token.
func isProbe(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/api/hello") && r.ContentLength == 0 && credential(r) == ""
}

// refuseUpgrade refuses WebSockets, with the status that sends their clients
// back to server-sent events.
func refuseUpgrade(r *http.Request) *fault {
	if r.Header.Get("Upgrade") == "" {
		return nil
	}
	return faultf(http.StatusUpgradeRequired, "WebSockets do not pass here: use server-sent events")
}

func (c *call) serve() {
	ctx, stop := context.WithCancelCause(c.r.Context())
	defer stop(nil)
	c.stop = stop
	f := c.describe()
	switch {
	case f != nil:
		c.side = true
		err := c.begin()
		c.deliver(c.own(f), err)
	case c.adm.Replay != nil && !c.d.live.has(c.adm.Run):
		c.replay(ctx)
	case c.adm.Locked:
		if err := c.begin(); err != nil {
			c.deliver(answer{fed: nobody}, err)
			return
		}
		c.deliver(<-c.ask(ctx), nil)
	default:
		asked := c.ask(ctx)
		err := c.begin()
		c.deliver(<-asked, err)
	}
}

// hash finds the key of the request. What cannot be normalised has none.
func (c *call) hash() {
	_ = guarded(func() (err error) {
		c.x.Key, err = modelapi.Key(c.x.API, c.header, c.body)
		return err
	})
}

// describe reads the request. What cannot be read is refused: it could not be
// recorded for what it is.
func (c *call) describe() *fault {
	u, err := upstreamURL(c.provider.URL, c.rest, cleanQuery(c.r.URL.RawQuery))
	if err != nil {
		return refusal(err)
	}
	c.x.Path = u.RequestURI()
	c.side = c.x.API == modelapi.Other
	err = guarded(func() (err error) {
		c.said, err = modelapi.CheckRequest(c.x.API, c.header, c.body)
		return err
	})
	if err != nil && mayfly.KindOf(err) != mayfly.Invalid {
		c.d.g.log.Error("a request cannot be read", "env", c.d.env, "run", c.adm.Run, "exchange", c.x.ID, "err", err)
		err = errors.New("internal error")
	}
	if err != nil {
		return refusal(err)
	}
	return nil
}

// tell fills the exchange with what the request says.
func (c *call) tell() {
	if c.said == nil {
		return // it was refused
	}
	req := c.said()
	c.side = c.side || req.Side != ""
	c.x.Model, c.x.Stream, c.x.Session, c.x.Agent = req.Model, req.Stream, req.Session, req.Agent
	c.x.Parameters, c.x.System, c.x.Tools = req.Parameters, req.SystemDigest, req.ToolsDigest
	if c.x.Model == "" {
		c.x.Model = modelapi.PathModel(c.x.Path)
	}
}

func refusal(err error) *fault {
	f := faultf(http.StatusBadRequest, "the request cannot be read: %v", err)
	f.reason = refused + err.Error()
	return f
}

// guarded turns a panic over somebody's bytes into an error.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

// begin records the request and the start of the exchange.
func (c *call) begin() error { return guarded(c.beginNow) }

func (c *call) beginNow() error {
	c.tell()
	c.hash()
	ctx, cancel := c.durable()
	defer cancel()
	var err error
	if c.x.Request, err = c.d.g.recorder.WriteContent(ctx, c.adm.Run, c.request()); err != nil {
		return fmt.Errorf("record request: %w", err)
	}
	c.attempt = c.d.attempts.open(c.r.Context(), c.adm.Run, c.x)
	repeats := 0
	if !c.side {
		repeats = c.attempt.repeats
	}
	if err := c.d.g.runs.Begin(ctx, &c.x, !c.side && repeats == 0, repeats); err != nil {
		return fmt.Errorf("begin exchange: %w", err)
	}
	c.attempt.began(c.x.Number)
	return nil
}

// request is what is recorded of the request.
func (c *call) request() mayfly.Content { return mayfly.Content{Header: c.header, Body: c.body} }

// durable is a context for what must be saved even when the agent has gone.
func (c *call) durable() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.r.Context()), c.d.g.o.Durable)
}

// own is an answer of the gateway itself.
func (c *call) own(f *fault) answer {
	body := f.body(c.provider.API)
	c.tape.write(body)
	c.tape.end(io.EOF)
	reason := f.reason
	if reason == "" {
		reason = noAnswer + f.message
	}
	return answer{status: f.status, header: f.header(), length: int64(len(body)), reason: reason, fed: nobody}
}

// nobody writes on a tape that is complete.
var nobody = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// ask forwards the request. The goroutine that waits for the answer feeds the
// tape with it.
func (c *call) ask(ctx context.Context) <-chan answer {
	asked := make(chan answer, 1)
	key, err := c.provider.key()
	if err != nil {
		asked <- c.own(faultf(http.StatusUnauthorized, "there is no key for the upstream %s. For the operator: %v", c.provider.Name, err))
		return asked
	}
	u, err := upstreamURL(c.provider.URL, c.rest, cleanQuery(c.r.URL.RawQuery))
	if err != nil {
		asked <- c.own(refusal(err))
		return asked
	}
	req := newRequest(ctx, c.r.Method, u, c.header, c.body)
	c.provider.identify(req.Header, key)
	go c.converse(ctx, req, c.provider.secrets(key), asked)
	return asked
}

// converse sends a request, says what came of it, and feeds the tape with the
// body of the answer.
func (c *call) converse(ctx context.Context, req *http.Request, secrets []string, asked chan<- answer) {
	fed := make(chan struct{})
	defer close(fed)
	silence := time.AfterFunc(c.d.g.o.Silence, func() { c.stop(errSilent) })
	defer silence.Stop()
	var resp *http.Response
	var m masks
	err := guarded(func() (err error) {
		resp, m, err = c.respond(req, secrets)
		return err
	})
	if err != nil {
		a := c.own(c.unanswered(ctx, err, secrets))
		a.fed = fed
		asked <- a
		return
	}
	defer resp.Body.Close()
	header := withoutHops(resp.Header)
	header.Del("Content-Length")
	asked <- answer{status: resp.StatusCode, header: header, length: resp.ContentLength, fed: fed}
	c.tape.feed(resp.Body, func(p []byte) {
		silence.Reset(c.d.g.o.Silence)
		m.hide(p)
	})
}

// respond returns the header of the upstream's answer, without secrets.
func (c *call) respond(req *http.Request, secrets []string) (*http.Response, masks, error) {
	resp, err := c.d.g.transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	m, err := withoutSecrets(resp, secrets)
	if err == nil && resp.StatusCode < 200 {
		err = errors.New("it switched to another protocol")
	}
	if err != nil {
		resp.Body.Close()
	}
	return resp, m, err
}

// unanswered is the fault for a request that got no answer.
func (c *call) unanswered(ctx context.Context, err error, secrets []string) *fault {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		err = errSilent
	}
	f := unreachable(c.provider.Name, err)
	if c.r.Context().Err() != nil {
		f.reason = cutByAgent + "it did not wait for the answer"
	}
	f.reason = without(f.reason, secrets)
	return f
}

// deliver passes an answer on, unless the start of the exchange could not be
// saved, and saves its end.
func (c *call) deliver(a answer, err error) {
	if err != nil {
		c.stop(err)
		c.abandon(a)
		if mayfly.KindOf(err) == mayfly.Forbidden {
			faultf(http.StatusForbidden, "%v", err).write(c.w, c.provider.API)
			return
		}
		c.d.g.log.Error("a model call was refused: it cannot be recorded", "env", c.d.env, "run", c.adm.Run, "err", err)
		c.extend()
		faultf(http.StatusServiceUnavailable, "the call cannot be recorded, so its answer is withheld").again().write(c.w, c.provider.API)
		return
	}
	c.body = nil
	c.x.Status, c.x.Error = a.status, a.reason
	if err = c.pass(a); err != nil {
		c.stop(err)
	}
	c.abandon(a)
	c.reason(err, a)
	if saved := c.finish(a); saved != nil {
		c.d.g.log.Error("the end of a model call cannot be recorded", "env", c.d.env, "run", c.adm.Run, "exchange", c.x.ID, "err", saved)
		err = saved
	}
	if err != nil || a.cut {
		panic(http.ErrAbortHandler) // the agent must not take this for the whole answer
	}
	c.extend()
}

// abandon waits until nothing writes on the tape any more.
func (c *call) abandon(a answer) {
	c.tape.leave()
	<-a.fed
}

// extend gives the agent time to take what is written next.
func (c *call) extend() { c.out.SetWriteDeadline(time.Now().Add(c.d.g.o.Stall)) }

// errAgent is what writing to the agent fails with.
type errAgent struct{ err error }

func (e errAgent) Error() string { return e.err.Error() }

// headerAlone is how long a header waits for the first chunk.
const headerAlone = 500 * time.Microsecond

// pass writes the answer to the agent, each chunk by itself.
func (c *call) pass(a answer) error {
	h := c.w.Header()
	for name, values := range a.header {
		h[name] = values
	}
	if a.length >= 0 && a.status != http.StatusNoContent {
		h.Set("Content-Length", fmt.Sprint(a.length))
	}
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or net/http would guess
	}
	c.extend()
	c.w.WriteHeader(a.status)
	if !c.tape.soon(headerAlone) {
		if err := c.out.Flush(); err != nil {
			return errAgent{err}
		}
	}
	for passed := int64(0); ; {
		if passed == a.length && a.length > 0 {
			return nil // the agent may close the connection before the upstream's end is seen
		}
		p, err := c.tape.take()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.extend()
		if _, err := c.w.Write(p); err != nil {
			return errAgent{err}
		}
		passed += int64(len(p))
		if err := c.out.Flush(); err != nil {
			return errAgent{err}
		}
	}
}

// reason notes how passing on ended.
func (c *call) reason(err error, a answer) {
	var agent errAgent
	_, _, whole := c.tape.recorded()
	switch {
	case errors.As(err, &agent) && isTimeout(agent.err):
		c.x.Error = cutByAgent + "it stopped reading"
	case err != nil && (c.r.Context().Err() != nil || errors.As(err, &agent)):
		c.x.Error = cutByAgent + "it closed the connection"
	case err != nil:
		c.x.Error = cutByUpstream + err.Error()
	case !whole:
		c.x.Error = fmt.Sprintf(truncated, c.d.g.o.MaxAnswer)
	}
}

// finish records the answer and saves the end of the exchange.
func (c *call) finish(a answer) error {
	ctx, cancel := c.durable()
	defer cancel()
	body, chunks, _ := c.tape.recorded()
	c.x.End, c.x.AnswerSize = c.d.g.now(), c.tape.size
	if len(chunks) > 0 {
		c.x.FirstByte = c.x.Start.Add(chunks[0].After)
	}
	c.understand(a.header, body)
	c.attempt.end(c.x.Error != "" || c.x.Status >= 400 || c.unwell)
	var err error
	if c.x.Answer, err = c.d.g.recorder.WriteContent(ctx, c.adm.Run, mayfly.Content{Header: a.header, Body: body, Chunks: chunks}); err != nil {
		return fmt.Errorf("record answer: %w", err)
	}
	if err := c.d.g.runs.End(ctx, c.x); err != nil {
		return fmt.Errorf("end exchange: %w", err)
	}
	return nil
}

// understand takes the usage out of an answer, and whether it is one that the
// agent can go on with. What cannot be read says nothing.
func (c *call) understand(header http.Header, body []byte) {
	if c.x.API == modelapi.Other || c.x.Status >= 400 {
		return
	}
	var parsed modelapi.Answer
	err := guarded(func() (err error) {
		parsed, err = modelapi.ParseAnswer(c.x.API, header, body)
		return err
	})
	if err != nil {
		c.d.g.log.Debug("an answer cannot be read", "exchange", c.x.ID, "err", err)
		return
	}
	c.x.Usage = parsed.Usage
	c.unwell = parsed.Error != ""
	if parsed.Complete && strings.HasPrefix(c.x.Error, cutByAgent) {
		c.x.Error = "" // it had all that it needs, and did not wait for the framing
	}
}
