package mayfly

import (
	"context"
	"encoding/json"
	"time"
)

// Event is one fact: who, what, when, in which environment and run. Content
// that is large or sensitive is named by digest and kept elsewhere.
type Event struct {
	Seq         uint64          `json:"seq"` // position in the ledger, from 1, without gaps
	ID          string          `json:"id"`  // names the fact: the same fact retried has the same id
	Time        time.Time       `json:"time"`
	Type        string          `json:"type"` // "environment.created", "run.exited", …
	Actor       string          `json:"actor"`
	Environment string          `json:"environment,omitempty"`
	Run         string          `json:"run,omitempty"`
	Step        int             `json:"step,omitempty"`
	Data        json.RawMessage `json:"data,omitempty"`    // small object, by type
	Content     string          `json:"content,omitempty"` // digest
}

// EventFilter selects events.
type EventFilter struct {
	After       uint64 // only events with a greater Seq
	Environment string // ref
	Run         string
	Follow      bool // wait for more
}

// Events reads the ledger.
type Events interface {
	// Events calls yield for each event in order, until yield returns an
	// error (which Events returns), the context ends, or, without Follow,
	// there are no more.
	Events(ctx context.Context, f EventFilter, yield func(Event) error) error
}
