package control

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

func (m *model) ref() string { return modelRef(m.Name, m.Version) }

// modelRef pads the version, so that references sort.
func modelRef(name string, version int) string { return fmt.Sprintf("%s@%06d", name, version) }

// AddModel implements mayfly.Models.
func (e *Engine) AddModel(ctx context.Context, q mayfly.AddModel) (mayfly.Model, error) {
	m, err := e.planModel(ctx, q)
	if err != nil {
		return mayfly.Model{}, err
	}
	err = e.Store.Update(ctx, func(tx *store.Tx) error {
		versions, err := decodeAll[model](tx.ListOf(kindModel, m.Name))
		if err != nil {
			return err
		}
		for _, v := range versions {
			if v.Digest == m.Digest {
				m = v
				return nil
			}
		}
		m.Version = len(versions) + 1
		if err := put(tx, m); err != nil {
			return err
		}
		return e.emit(tx, m.Actor, "model.added", "", q.Run, m.Model)
	})
	if err != nil {
		return mayfly.Model{}, err
	}
	return e.Model(ctx, m.Name+"@"+strconv.Itoa(m.Version))
}

// planModel checks a request and fills in what it takes from a run.
func (e *Engine) planModel(ctx context.Context, q mayfly.AddModel) (*model, error) {
	if err := mayfly.CheckName(q.Name); err != nil {
		return nil, err
	}
	m := &model{mayfly.Model{
		Name: q.Name, Provider: q.Provider, ID: q.ID, Parameters: q.Parameters,
		System: q.System, Template: q.Template, Tools: q.Tools,
		CreatedAt: e.Now().UTC(), Actor: mayfly.Actor(ctx),
	}}
	if q.Run != "" {
		if err := e.takeFrom(ctx, q.Run, m); err != nil {
			return nil, err
		}
	}
	if m.Provider == "" || m.ID == "" {
		return nil, mayfly.Errorf(mayfly.Invalid, "an entry needs a provider and a model id").
			Hint("give both, or a run to take them from: mayfly model add %s --run RUN", q.Name)
	}
	for _, d := range []string{m.System, m.Template, m.Tools} {
		if d == "" {
			continue
		}
		if err := checkDigest(d); err != nil {
			return nil, err
		}
	}
	m.Digest = modelDigest(m.Model)
	return m, nil
}

// takeFrom fills an entry, where the request was silent, with what the first
// step of a run asked.
func (e *Engine) takeFrom(ctx context.Context, id string, m *model) error {
	var r *run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		r, err = findRun(tx, id)
		return err
	})
	if err != nil {
		return err
	}
	if r.First == nil {
		return mayfly.Errorf(mayfly.Conflict, "run %s has asked no model", r.ID).
			Hint("name one that has; mayfly graph RUN shows its steps")
	}
	fallback(&m.Provider, r.First.Provider)
	fallback(&m.ID, r.First.ID)
	fallback(&m.System, r.First.System)
	fallback(&m.Tools, r.First.Tools)
	p, from := &m.Parameters, r.First.Parameters
	fallback(&p.Temperature, from.Temperature)
	fallback(&p.TopP, from.TopP)
	fallback(&p.TopK, from.TopK)
	fallback(&p.MaxTokens, from.MaxTokens)
	fallback(&p.Seed, from.Seed)
	fallback(&p.Reasoning, from.Reasoning)
	return nil
}

func fallback[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// modelDigest is SHA-256 over the JSON of what decides a model's answers, in
// the order of the fields here.
func modelDigest(m mayfly.Model) string {
	text, _ := json.Marshal(struct { // strings and numbers only
		Provider   string            `json:"provider"`
		ID         string            `json:"id"`
		Parameters mayfly.Parameters `json:"parameters"`
		System     string            `json:"system"`
		Template   string            `json:"template"`
		Tools      string            `json:"tools"`
	}{m.Provider, m.ID, m.Parameters, m.System, m.Template, m.Tools})
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Model implements mayfly.Models.
func (e *Engine) Model(ctx context.Context, ref string) (mayfly.Model, error) {
	var m *model
	var runs []*run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if m, err = findModel(tx, ref); err == nil {
			runs, err = decodeAll[run](tx.List(kindRun))
		}
		return err
	})
	if err != nil {
		return mayfly.Model{}, err
	}
	m.Baseline = baseline(m.Model, runs)
	return m.Model, nil
}

// Models implements mayfly.Models.
func (e *Engine) Models(ctx context.Context) ([]mayfly.Model, error) {
	var entries []*model
	var runs []*run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if entries, err = decodeAll[model](tx.List(kindModel)); err == nil {
			runs, err = decodeAll[run](tx.List(kindRun))
		}
		return err
	})
	list := make([]mayfly.Model, 0, len(entries))
	for _, m := range entries {
		m.Baseline = baseline(m.Model, runs)
		list = append(list, m.Model)
	}
	return list, err
}

// findModel resolves a name, for its newest version, or name@version.
func findModel(tx *store.Tx, ref string) (*model, error) {
	name, number, exact := strings.Cut(ref, "@")
	version, err := strconv.Atoi(number)
	if exact && (err != nil || version < 1) {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad model %q", ref).Hint("write NAME or NAME@VERSION, such as reviewer@2")
	}
	if exact {
		m, err := get[model](tx, kindModel, modelRef(name, version))
		if !errors.Is(err, sql.ErrNoRows) {
			return m, err
		}
	} else {
		versions, err := decodeAll[model](tx.ListOf(kindModel, name))
		if err != nil {
			return nil, err
		}
		if n := len(versions); n > 0 {
			return versions[n-1], nil
		}
	}
	return nil, mayfly.Errorf(mayfly.NotFound, "no model %q in the registry", ref).Hint("list them with: mayfly model list")
}

// belongs reports whether a run counts for an entry: it was meant to use it, or
// its first step asked just that.
func (r *run) belongs(m mayfly.Model) bool {
	if r.Replay != nil || r.Steps == 0 || !r.Phase.Ended() {
		return false // a replay says nothing about a model
	}
	if r.Pinned != nil {
		return r.Pinned.Name == m.Name && r.Pinned.Version == m.Version && r.Drift == ""
	}
	return r.First != nil && modelDrift(m, *r.First) == ""
}

// baseline computes how the recorded runs of an entry went.
func baseline(m mayfly.Model, runs []*run) mayfly.ModelBaseline {
	var b mayfly.ModelBaseline
	var took time.Duration
	for _, r := range runs {
		if !r.belongs(m) {
			continue
		}
		b.Runs++
		if r.Phase == mayfly.RunExited && r.ExitCode == 0 {
			b.Success++
		}
		b.Steps += float64(r.Steps)
		b.Input += float64(r.Tokens.Input)
		b.Output += float64(r.Tokens.Output)
		took += r.EndedAt.Sub(r.StartedAt)
	}
	if n := float64(b.Runs); n > 0 {
		b.Success, b.Steps, b.Input, b.Output = b.Success/n, b.Steps/n, b.Input/n, b.Output/n
		b.Duration = took / time.Duration(b.Runs)
	}
	return b
}

// checkModel compares what a step asks with the entry that its run is meant to
// use. A difference is noted once; in a locked run it is a refusal, and noted
// each time. Side calls are the agent's own business.
func (e *Engine) checkModel(tx *store.Tx, r *run, x *mayfly.Exchange, boundary bool) (refusal, err error) {
	if !boundary {
		return nil, nil
	}
	asked := mayfly.Model{Provider: x.Provider, ID: x.Model, Parameters: x.Parameters, System: x.System, Tools: x.Tools}
	if r.First == nil {
		r.First = &asked
	}
	if r.Pinned == nil {
		return nil, nil
	}
	drift := modelDrift(*r.Pinned, asked)
	if drift == "" || drift == r.Drift && !r.Locked {
		return nil, nil
	}
	r.Drift = drift
	if r.Locked {
		refusal = mayfly.Errorf(mayfly.Forbidden, "the run is locked to the model %s: %s", r.Model, drift).
			Hint("ask for the model that mayfly.lock pins, or run without --locked")
		err = put(tx, r)
	}
	return refusal, errors.Join(err, e.emitEvent(tx, mayfly.Event{
		Type: "model.drift", Actor: serverActor, Environment: r.Environment, Run: r.ID,
	}, fields{"model": r.Model, "difference": drift, "refused": r.Locked}))
}

// modelDrift says in one line what differs from an entry, where that is not
// silent.
func modelDrift(want, got mayfly.Model) string {
	var all []string
	add := func(what, want, got string) {
		if want != "" && want != got {
			all = append(all, fmt.Sprintf("%s was %s and is %s", what, want, orNone(got)))
		}
	}
	add("the provider", want.Provider, got.Provider)
	add("the model", want.ID, got.ID)
	add("temperature", number(want.Parameters.Temperature), number(got.Parameters.Temperature))
	add("top_p", number(want.Parameters.TopP), number(got.Parameters.TopP))
	add("top_k", number(want.Parameters.TopK), number(got.Parameters.TopK))
	add("max_tokens", number(want.Parameters.MaxTokens), number(got.Parameters.MaxTokens))
	add("seed", number(want.Parameters.Seed), number(got.Parameters.Seed))
	add("reasoning", want.Parameters.Reasoning, got.Parameters.Reasoning)
	add("the system prompt", want.System, got.System)
	add("the tool set", want.Tools, got.Tools)
	return strings.Join(all, "; ")
}

func number[T int64 | float64](v *T) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(*v)
}

func orNone(s string) string {
	if s == "" {
		return "not set"
	}
	return s
}
