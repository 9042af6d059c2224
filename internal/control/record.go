package control

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

const (
	kindEnvironment store.Kind = "environment"
	kindRun         store.Kind = "run"
	kindSnapshot    store.Kind = "snapshot"
	kindTemplate    store.Kind = "template"
	kindExchange    store.Kind = "exchange"
	kindModel       store.Kind = "model"
)

// goal is what an environment is meant to become.
type goal string

const (
	goalReady   goal = "ready"
	goalPaused  goal = "paused"
	goalDeleted goal = "deleted"
)

// environment is the saved state of an environment.
type environment struct {
	mayfly.Environment
	Handle    driver.Handle         `json:"handle"`
	Spec      driver.Spec           `json:"spec"`
	Goal      goal                  `json:"goal"`
	Why       string                `json:"why,omitempty"`     // of the goal: becomes the reason
	Failure   *mayfly.Error         `json:"failure,omitempty"` // it could not be made
	Snapshots int                   `json:"snapshots"`         // taken so far, for their numbers
	Rollback  *rollback             `json:"rollback,omitempty"`
	Named     []string              `json:"named,omitempty"` // variables that its template or its owner set
	Exact     mayfly.ExactRecording `json:"exact,omitempty"`
}

// rollback is a rollback that was asked for and is not finished.
type rollback struct {
	To    string      `json:"to"`    // snapshot to restore
	Saved string      `json:"saved"` // snapshot of what it replaces
	Only  mayfly.Side `json:"only,omitempty"`
	Actor string      `json:"actor"`
}

// run is the saved state of a run.
type run struct {
	mayfly.Run
	Process  driver.Process `json:"process"`
	Kill     string         `json:"kill,omitempty"`     // why it is being ended
	KillAt   time.Time      `json:"kill_at,omitzero"`   // SIGKILL is due
	Settled  bool           `json:"settled,omitempty"`  // nothing is left to do for it
	Attach   bool           `json:"attach,omitempty"`   // somebody is going to read its output
	Fresh    bool           `json:"fresh,omitempty"`    // its baseline is the template as it was
	Recent   []int          `json:"recent,omitempty"`   // steps of the last exchanges
	Pinned   *mayfly.Model  `json:"pinned,omitempty"`   // the entry that Model names
	Drift    string         `json:"drift,omitempty"`    // the difference from Pinned that was noted last
	First    *mayfly.Model  `json:"first,omitempty"`    // what the first step asked, as an entry without a name
	Began    *began         `json:"began,omitempty"`    // its last step
	After    uint64         `json:"after,omitempty"`    // events about it have a greater Seq
	Redacted bool           `json:"redacted,omitempty"` // the command and its variables are not whole
	Sealed   []byte         `json:"sealed,omitempty"`   // the whole, under the run's key
}

// snapshot is the saved state of a snapshot.
type snapshot struct {
	mayfly.Snapshot
	Ends    *began        `json:"ends,omitempty"`    // the step that it shows the end of
	Failure *mayfly.Error `json:"failure,omitempty"` // it could not be taken
	Discard string        `json:"discard,omitempty"` // the actor who wants it deleted
}

// taken reports whether there has been such a snapshot, deleted or not.
func (s *snapshot) taken() bool { return s.Ready || !s.DeletedAt.IsZero() }

// exchange is the saved state of an exchange that has not ended.
type exchange struct{ mayfly.Exchange }

// model is the saved state of an entry of the model registry.
type model struct{ mayfly.Model }

// template is the saved state of a template.
type template struct{ mayfly.Template }

// record is anything that the engine saves.
type record interface{ object() store.Object }

func (e *environment) object() store.Object {
	open := e.Phase != mayfly.Deleted && e.Phase != mayfly.Failed
	return store.Object{Kind: kindEnvironment, ID: e.ID, Name: e.Name, Open: open}
}

func (r *run) object() store.Object {
	return store.Object{Kind: kindRun, ID: r.ID, Parent: r.Environment, Open: !r.Settled}
}

func (s *snapshot) object() store.Object {
	open := s.DeletedAt.IsZero() && (s.Discard != "" || !s.Ready && s.Failure == nil)
	return store.Object{Kind: kindSnapshot, ID: s.ID, Parent: s.Environment, Open: open}
}

func (x *exchange) object() store.Object {
	return store.Object{Kind: kindExchange, ID: x.ID, Parent: x.Environment, Open: true}
}

func (m *model) object() store.Object {
	return store.Object{Kind: kindModel, ID: m.ref(), Parent: m.Name}
}

func (t *template) object() store.Object {
	return store.Object{Kind: kindTemplate, ID: t.Digest}
}

func put(tx *store.Tx, r record) error {
	o := r.object()
	doc, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save %s %s: %w", o.Kind, o.ID, err)
	}
	o.Doc = doc
	return tx.Put(o)
}

func decode[T any](o store.Object) (*T, error) {
	r := new(T)
	if err := json.Unmarshal(o.Doc, r); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", o.Kind, o.ID, err)
	}
	return r, nil
}

func decodeAll[T any](objects []store.Object, err error) ([]*T, error) {
	if err != nil {
		return nil, err
	}
	records := make([]*T, 0, len(objects))
	for _, o := range objects {
		r, err := decode[T](o)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func get[T any](tx *store.Tx, kind store.Kind, id string) (*T, error) {
	o, err := tx.Get(kind, id)
	if err != nil {
		return nil, err
	}
	return decode[T](o)
}

// findEnvironment resolves a ref: the name of a live environment, an id, a
// unique prefix of one, or the id of a run in it.
func findEnvironment(tx *store.Tx, ref string) (*environment, error) {
	if o, err := tx.Named(kindEnvironment, ref); err == nil {
		return decode[environment](o)
	} else if !errors.Is(err, sql.ErrNoRows) {
		return nil, err
	}
	if strings.HasPrefix(ref, "run-") {
		r, err := findRun(tx, ref)
		if err != nil {
			return nil, err
		}
		return get[environment](tx, kindEnvironment, r.Environment)
	}
	o, err := findPrefix(tx, kindEnvironment, "env-", ref)
	if err != nil {
		return nil, err
	}
	return decode[environment](o)
}

func findRun(tx *store.Tx, ref string) (*run, error) {
	o, err := findPrefix(tx, kindRun, "run-", ref)
	if err != nil {
		return nil, err
	}
	return decode[run](o)
}

// findPrefix finds the one object whose id begins with ref, which may leave
// out the id's own prefix.
func findPrefix(tx *store.Tx, kind store.Kind, idPrefix, ref string) (store.Object, error) {
	id := ref
	if !strings.HasPrefix(id, idPrefix) {
		id = idPrefix + id
	}
	var found []store.Object
	if len(id) >= len(idPrefix)+4 { // shorter ones are ambiguous by their nature
		var err error
		if found, err = tx.ListPrefix(kind, id); err != nil {
			return store.Object{}, err
		}
	}
	list := map[store.Kind]string{kindEnvironment: "mayfly env list", kindRun: "mayfly env show ENV"}[kind]
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return store.Object{}, mayfly.Errorf(mayfly.NotFound, "no %s %q", kind, ref).Hint("list them with: %s", list)
	}
	return store.Object{}, mayfly.Errorf(mayfly.Invalid, "%q stands for %d %ss", ref, len(found), kind).
		Hint("write more of the id; list them with: %s", list)
}

// findSnapshot resolves a snapshot within an environment: an id or a number.
func findSnapshot(tx *store.Tx, env *environment, ref string) (*snapshot, error) {
	all, err := decodeAll[snapshot](tx.ListOf(kindSnapshot, env.ID))
	if err != nil {
		return nil, err
	}
	number, numberErr := strconv.Atoi(ref)
	for _, s := range all {
		switch {
		case s.ID != ref && (numberErr != nil || s.Number != number), s.Kind == heldSnapshot:
		case !s.DeletedAt.IsZero(), s.Discard != "":
			return nil, mayfly.Errorf(mayfly.NotFound, "snapshot %d of environment %s was deleted", s.Number, env.Name).
				Hint("list those that are left with: mayfly snapshot list %s", env.Name)
		case s.Ready:
			return s, nil
		}
	}
	return nil, mayfly.Errorf(mayfly.NotFound, "no snapshot %q in environment %s", ref, env.Name).
		Hint("list them with: mayfly snapshot list %s", env.Name)
}
