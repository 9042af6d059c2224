package control

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// tokenPrefix begins the token of every run.
const tokenPrefix = "mf-"

// token is what a run shows at its environment's door: "mf-", its id, "-", and
// the first half of an HMAC-SHA256 under the server's key, in hexadecimal. It
// follows from the key, so that nothing is stored.
func (e *Engine) token(env, run string) string {
	mac := hmac.New(sha256.New, e.TokenKey)
	mac.Write([]byte("run token\x00" + env + "\x00" + run))
	return tokenPrefix + run + "-" + hex.EncodeToString(mac.Sum(nil)[:sha256.Size/2])
}

// Admit returns the run that a token belongs to; Forbidden when it is not one
// of this environment's open runs, which is kept as an event.
func (e *Engine) Admit(ctx context.Context, env, token string) (mayfly.Run, error) {
	r, why, err := e.bearer(ctx, env, token)
	if err != nil {
		return mayfly.Run{}, err
	}
	if why != "" {
		refusal := mayfly.Errorf(mayfly.Forbidden, "the token is refused: %s", why).
			Hint("use the one in the variables of the run, such as ANTHROPIC_AUTH_TOKEN")
		return mayfly.Run{}, errors.Join(refusal, e.noteRefusal(ctx, env, why))
	}
	return r.Run, e.beginRecording(ctx, r)
}

// bearer finds the run of a token, or why there is none.
func (e *Engine) bearer(ctx context.Context, env, token string) (r *run, why string, err error) {
	if token == "" {
		return nil, "there is none", nil
	}
	id, _, _ := cutLast(strings.TrimPrefix(token, tokenPrefix), "-")
	if len(e.TokenKey) == 0 || !hmac.Equal([]byte(token), []byte(e.token(env, id))) {
		return nil, "it is not one of this environment", nil
	}
	err = e.Store.View(ctx, func(tx *store.Tx) (err error) {
		r, err = get[run](tx, kindRun, id)
		return err
	})
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil, "its run is gone", nil
	case err != nil:
		return nil, "", err
	case r.Phase.Ended():
		return nil, "its run has ended", nil
	}
	return r, "", nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// refusals counts those of an environment in a period, so that a process that
// guesses cannot fill the ledger.
type refusals struct {
	since time.Time
	count int
}

// At most maxRefusals of an environment become events in a refusalPeriod.
const (
	maxRefusals   = 10
	refusalPeriod = time.Minute
)

func (e *Engine) noteRefusal(ctx context.Context, env, why string) error {
	e.mu.Lock()
	seen := e.refused[env]
	if now := e.Now(); now.Sub(seen.since) > refusalPeriod {
		seen = refusals{since: now}
	}
	seen.count++
	e.refused[env] = seen
	e.mu.Unlock()
	if seen.count > maxRefusals {
		return nil
	}
	data := fields{"reason": why}
	if seen.count == maxRefusals {
		data["note"] = "further ones in this minute are not kept"
	}
	return e.Store.Update(ctx, func(tx *store.Tx) error {
		return e.emit(tx, serverActor, "gateway.refused", env, "", data)
	})
}
