package gateway

import (
	"context"

	"mayfly.dev/mayfly"
)

// Runs knows the runs whose tokens the gateway is shown, and keeps their
// exchanges. What it returns without an error is on disk.
type Runs interface {
	// Admit returns the run that the token belongs to; Forbidden when it is
	// not one of this environment's open runs, which is kept as an event. An
	// empty token is what a request without one has.
	Admit(ctx context.Context, env, token string) (Admission, error)
	// Begin numbers the exchange (Number, Step) and saves its start with an
	// event. boundary asks for a snapshot of the environment. retry is the
	// number of the exchange of the run that this one repeats, which gives it
	// that one's step; 0 when it repeats none.
	Begin(ctx context.Context, x *mayfly.Exchange, boundary bool, retry int) error
	// End saves the end of the exchange with an event.
	End(ctx context.Context, x mayfly.Exchange) error
	// Report saves something that an agent said about itself: an event
	// "agent.<kind>" whose Content is a recorded digest.
	Report(ctx context.Context, env, run, kind, content string) error
	// Diverged saves a divergence of a replay with an event; when stop is set
	// the run is ended.
	Diverged(ctx context.Context, run string, d mayfly.Divergence, stop bool) error
}

// Admission is what a valid token stands for.
type Admission struct {
	Environment, Run string
	Locked           bool           // Begin may refuse what the run asks: nothing is sent before
	Replay           *mayfly.Replay // nil: answers come from the upstream
}

// Recorder keeps bytes, redacted, each once.
type Recorder interface {
	// WriteContent returns the digest of the redacted content record, which
	// is on disk then.
	WriteContent(ctx context.Context, run string, c mayfly.Content) (digest string, err error)
}

// Player finds recorded answers.
type Player interface {
	// Answer returns the recorded answer to the request, and the divergence
	// when the request is not the recorded one. NotFound: the recording has
	// no such exchange.
	Answer(ctx context.Context, a Admission, x mayfly.Exchange, request mayfly.Content) (Played, error)
}

// Played is a recorded answer.
type Played struct {
	Exchange   mayfly.Exchange // the recorded one
	Content    mayfly.Content  // exact bytes while the key of its run exists
	Divergence *mayfly.Divergence
}
