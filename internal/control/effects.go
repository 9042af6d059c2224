package control

import (
	"context"
	"sync"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// began is where a step of a run began.
type began struct {
	Step     int    `json:"step"`
	Snapshot string `json:"snapshot"`
}

// effects finds out what steps changed, one at a time and behind the agents'
// backs: comparing takes longer than a step should wait.
type effects struct {
	turn sync.Mutex // held while comparing

	mu      sync.Mutex
	pending map[string]*sync.WaitGroup // by environment
}

// of returns what waits for the comparisons of an environment.
func (f *effects) of(env string) *sync.WaitGroup {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pending == nil {
		f.pending = map[string]*sync.WaitGroup{}
	}
	if f.pending[env] == nil {
		f.pending[env] = &sync.WaitGroup{}
	}
	return f.pending[env]
}

// await returns when nothing of an environment is being compared.
func (f *effects) await(env string) {
	f.of(env).Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pending, env)
}

// noteEffects has those steps looked at that the snapshots of s end. What a
// crash leaves out, the graph compares when it is drawn.
func (e *Engine) noteEffects(s *situation) {
	for _, snap := range s.taken {
		if !snap.Ready || snap.Ends == nil {
			continue
		}
		pending := e.effects.of(s.env.ID)
		pending.Add(1)
		e.wg.Go(func() {
			defer pending.Done()
			e.saveEffects(e.ctx, s.env, snap.Run, *snap.Ends, snap.ID)
		})
	}
}

// lastEffects saves what the last steps of runs changed that are removed with
// their environment, which has been stopped.
func (e *Engine) lastEffects(ctx context.Context, s *situation) {
	e.effects.await(s.env.ID)
	for _, r := range s.runs {
		if r.Began != nil && r.Final == "" {
			e.saveEffects(ctx, s.env, r.ID, *r.Began, "")
		}
	}
}

// saveEffects compares a step's first state with the one that ends it, and
// saves the difference with an event.
func (e *Engine) saveEffects(ctx context.Context, env *environment, run string, b began, end string) {
	e.effects.turn.Lock()
	defer e.effects.turn.Unlock()
	files, err := e.compare(ctx, env.Handle, env.Spec, b.Snapshot, end)
	if err == nil {
		err = e.Store.Update(ctx, func(tx *store.Tx) error {
			tx.Derived()
			return e.emitEvent(tx, mayfly.Event{
				Type: "step.files", Actor: serverActor, Environment: env.ID, Run: run, Step: b.Step,
			}, stepFiles{files})
		})
	}
	if err != nil && ctx.Err() == nil {
		e.Log.Warn("what a step changed is not known", "run", run, "step", b.Step, "error", err)
	}
}

// stepFiles is the data of an event "step.files".
type stepFiles struct {
	Files []mayfly.Change `json:"files"`
}

// filesIn reads what steps changed from the events of a run.
func filesIn(events []mayfly.Event) (map[int][]mayfly.Change, error) {
	files := map[int][]mayfly.Change{}
	for _, event := range events {
		if event.Type != "step.files" {
			continue
		}
		data, err := eventData[stepFiles](event)
		if err != nil {
			return nil, err
		}
		files[event.Step] = data.Files
	}
	return files, nil
}
