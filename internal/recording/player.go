package recording

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// Player answers the requests of a replay from the recording of another run.
// It is safe for concurrent use.
type Player struct {
	store     *Store
	exchanges func(ctx context.Context, run string) ([]mayfly.Exchange, error)

	mu    sync.Mutex // guards games
	games map[string]*game
}

// NewPlayer makes a player. exchanges lists the exchanges of a run in order of
// arrival, with their ends as far as they have one.
func NewPlayer(s *Store, exchanges func(ctx context.Context, run string) ([]mayfly.Exchange, error)) *Player {
	return &Player{store: s, exchanges: exchanges, games: map[string]*game{}}
}

// Answer returns the recorded exchange that request of the replaying run asks
// for again, and its answer as it passed. There is a divergence when the
// request is not the recorded one, of kind "request", and when the answer
// cannot be given as it was, of kind "result". NotFound, with a divergence of
// kind "extra": the recording has no such exchange.
func (p *Player) Answer(ctx context.Context, replay mayfly.Replay, run string, x mayfly.Exchange, request mayfly.Content) (mayfly.Exchange, mayfly.Content, *mayfly.Divergence, error) {
	recorded, d, err := p.find(ctx, replay, run, x, request)
	if err != nil {
		return mayfly.Exchange{}, mayfly.Content{}, d, err
	}
	if recorded.Answer == "" {
		return recorded, mayfly.Content{}, d, nil
	}
	c, whole, err := p.store.exact(ctx, replay.Run, recorded.Answer)
	if err != nil {
		return mayfly.Exchange{}, mayfly.Content{}, nil, fmt.Errorf("answer of exchange %d of run %s: %w", recorded.Number, replay.Run, err)
	}
	if !whole && d == nil {
		d = &mayfly.Divergence{Number: x.Number, Step: x.Step, Kind: "result", Recorded: "an answer of which something was taken out, without the key to put it back"}
	}
	return recorded, c, d, nil
}

func (p *Player) find(ctx context.Context, replay mayfly.Replay, run string, x mayfly.Exchange, request mayfly.Content) (mayfly.Exchange, *mayfly.Divergence, error) {
	g, err := p.game(ctx, replay, run)
	if err != nil {
		return mayfly.Exchange{}, nil, err
	}
	if x.Key == "" {
		x.Key = keyOf(x.API, request)
	}
	recorded := g.take(x, isSide(x, request))
	if recorded == nil {
		d := &mayfly.Divergence{Number: x.Number, Step: x.Step, Kind: "extra", Replayed: p.store.Redact(title(x))}
		return mayfly.Exchange{}, d, mayfly.Errorf(mayfly.NotFound, "run %s has no recorded answer to exchange %d", replay.Run, x.Number).
			Hint("replay with --on-divergence live to ask the model from there on")
	}
	if recorded.Key == x.Key && recorded.API == x.API {
		return *recorded, nil, nil
	}
	d, err := p.difference(ctx, replay.Run, *recorded, x, request)
	return *recorded, d, err
}

// Missing lists what the recording has and the replay never asked for. Side
// calls are not missed.
func (p *Player) Missing(ctx context.Context, replay mayfly.Replay, run string) ([]mayfly.Divergence, error) {
	g, err := p.game(ctx, replay, run)
	if err != nil {
		return nil, err
	}
	var list []mayfly.Divergence
	for _, x := range g.missing() {
		list = append(list, mayfly.Divergence{
			Step: x.Step, Kind: "missing", Recorded: p.store.Redact(fmt.Sprintf("exchange %d: %s", x.Number, title(x))),
		})
	}
	return list, nil
}

// Forget drops what is kept in memory of a replay.
func (p *Player) Forget(run string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.games, run)
}

// game returns how far a replay is. After a restart that follows from what it
// has been answered.
func (p *Player) game(ctx context.Context, replay mayfly.Replay, run string) (*game, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if g := p.games[run]; g != nil {
		return g, nil
	}
	recorded, err := p.exchanges(ctx, replay.Run)
	if err != nil {
		return nil, fmt.Errorf("read recording of run %s: %w", replay.Run, err)
	}
	for i := range recorded {
		if err := p.addKey(ctx, replay.Run, &recorded[i]); err != nil {
			return nil, err
		}
	}
	own, err := p.exchanges(ctx, run)
	if err != nil {
		return nil, fmt.Errorf("read exchanges of run %s: %w", run, err)
	}
	g := newGame(recorded, replay.FromStep)
	for _, x := range own {
		if !x.End.IsZero() && (x.Replayed || x.Divergence != nil) {
			g.take(x, x.Step == 0)
		}
	}
	p.games[run] = g
	return g, nil
}

// addKey computes the key of a recorded exchange that has none.
func (p *Player) addKey(ctx context.Context, run string, x *mayfly.Exchange) error {
	if x.Key != "" || x.Request == "" {
		return nil
	}
	c, err := p.store.Exact(ctx, run, x.Request)
	if err != nil {
		return fmt.Errorf("request of exchange %d of run %s: %w", x.Number, run, err)
	}
	x.Key = keyOf(x.API, c)
	return nil
}

// keyOf is the key of a request; "" when it has none.
func keyOf(api string, c mayfly.Content) string {
	key, err := modelapi.Key(api, http.Header(c.Header), c.Body)
	if err != nil {
		return ""
	}
	return key
}

// isSide reports whether a request stands beside the conversation. It may not
// have its step yet.
func isSide(x mayfly.Exchange, c mayfly.Content) bool {
	if x.Step > 0 {
		return false
	}
	if x.API == modelapi.Other {
		return true
	}
	r, err := modelapi.ParseRequest(x.API, http.Header(c.Header), c.Body)
	return err == nil && r.Side != ""
}

// title says for people what an exchange is.
func title(x mayfly.Exchange) string {
	t := x.Method + " " + x.Path
	if x.Model != "" {
		t += " of " + x.Model
	}
	return t
}

// difference says where a request is not the recorded one. Both sides are
// looked at as they may be read by everyone.
func (p *Player) difference(ctx context.Context, run string, recorded, x mayfly.Exchange, request mayfly.Content) (*mayfly.Divergence, error) {
	d := &mayfly.Divergence{Number: x.Number, Step: x.Step, Kind: "request"}
	if recorded.API != x.API {
		d.Recorded, d.Replayed = p.store.Redact(title(recorded)), p.store.Redact(title(x))
		return d, nil
	}
	var old mayfly.Content
	if recorded.Request != "" {
		var err error
		if old, err = p.store.Content(ctx, recorded.Request); err != nil {
			return nil, fmt.Errorf("request of exchange %d of run %s: %w", recorded.Number, run, err)
		}
	}
	v := p.store.viewOf(request)
	left, err1 := modelapi.Normalise(x.API, http.Header(old.Header), old.Body)
	right, err2 := modelapi.Normalise(x.API, http.Header(v.header), v.body)
	if err1 != nil || err2 != nil {
		d.Recorded, d.Replayed = shorten(old.Body), shorten(v.body)
		return d, nil
	}
	var equal bool
	d.Path, d.Recorded, d.Replayed, equal = modelapi.Difference(left, right)
	if equal {
		d.Recorded, d.Replayed = "[redacted]", "[redacted], and something else"
	}
	return d, nil
}

// shorten cuts what people read of a body that is no JSON.
func shorten(b []byte) string {
	if len(b) > 200 {
		return string(b[:200]) + "…"
	}
	return string(b)
}
