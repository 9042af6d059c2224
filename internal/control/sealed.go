package control

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// words are what a person wrote for a process: prompts and variables, which may
// hold secrets.
type words struct {
	Command []string          `json:"command"`
	Env     map[string]string `json:"env,omitempty"`
}

// hide takes out of a new run what must not be written. What was there is kept
// as what is taken out of recordings is, sealed under the run's key or not at
// all, and in memory until the run has started.
func (e *Engine) hide(ctx context.Context, env *environment, r *run) error {
	if e.Recorder == nil {
		return nil
	}
	full := words{r.Process.Command, r.Process.Env}
	clean := words{slices.Clone(full.Command), maps.Clone(full.Env)}
	changed := false
	for i, arg := range clean.Command {
		clean.Command[i] = e.Recorder.Redact(arg)
		changed = changed || clean.Command[i] != arg
	}
	for k, v := range clean.Env {
		clean.Env[k] = e.Recorder.Redact(v)
		changed = changed || clean.Env[k] != v
	}
	if !changed {
		return nil
	}
	text, err := json.Marshal(full)
	if err == nil {
		err = e.Recorder.Begin(ctx, r.ID, env.Exact)
	}
	if err == nil {
		r.Sealed, err = e.Recorder.Seal(r.ID, text)
	}
	if err != nil {
		return fmt.Errorf("keep the command of run %s: %w", r.ID, err)
	}
	r.Redacted = true
	r.Command, r.Process.Command, r.Process.Env = clean.Command, clean.Command, clean.Env
	e.mu.Lock()
	e.hidden[r.ID] = full
	e.mu.Unlock()
	return nil
}

// process is what to start for a run, with what was hidden.
func (e *Engine) process(r *run) (driver.Process, error) {
	p := r.Process
	full, err := e.words(r)
	p.Command, p.Env = full.Command, full.Env
	return p, err
}

// words returns what a person wrote for a run. A Conflict error says that it is
// forgotten.
func (e *Engine) words(r *run) (words, error) {
	if !r.Redacted {
		return words{r.Process.Command, r.Process.Env}, nil
	}
	e.mu.Lock()
	full, ok := e.hidden[r.ID]
	e.mu.Unlock()
	if ok {
		return full, nil
	}
	var text []byte
	err := error(mayfly.Errorf(mayfly.NotFound, "it was not kept"))
	if len(r.Sealed) > 0 {
		text, err = e.Recorder.Unseal(r.ID, r.Sealed)
	}
	if err == nil {
		err = json.Unmarshal(text, &full)
	}
	if err != nil {
		return words{}, mayfly.Errorf(mayfly.Conflict, "the command of run %s held a secret, which is forgotten: %w", r.ID, err).
			Hint("give the command again, after two dashes")
	}
	return full, nil
}

// started lets go of what was hidden of a run.
func (e *Engine) started(run string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.hidden, run)
}
