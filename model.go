package mayfly

import (
	"context"
	"time"
)

// Model is an entry of the model registry: everything about a model and how
// it is asked that decides what it answers. An entry never changes; another
// prompt, tool set or parameter is another version.
type Model struct {
	Name       string        `json:"name"`    // chosen by a person: "reviewer"
	Version    int           `json:"version"` // 1, 2, … within the name
	Digest     string        `json:"digest"`  // over the fields below
	Provider   string        `json:"provider"`
	ID         string        `json:"id"` // as the provider calls it
	Parameters Parameters    `json:"parameters,omitzero"`
	System     string        `json:"system,omitempty"`   // digest of the system prompt
	Template   string        `json:"template,omitempty"` // digest of the prompt template
	Tools      string        `json:"tools,omitempty"`    // digest of the tool set
	CreatedAt  time.Time     `json:"created_at"`
	Actor      string        `json:"actor"`
	Baseline   ModelBaseline `json:"baseline,omitzero"` // computed from the recorded runs
}

// ModelBaseline is how the recorded runs of a model went, per run in the mean.
type ModelBaseline struct {
	Runs     int           `json:"runs"`
	Success  float64       `json:"success"` // share of runs that exited with status 0
	Steps    float64       `json:"steps"`
	Input    float64       `json:"input_tokens"`
	Output   float64       `json:"output_tokens"`
	Cost     float64       `json:"cost_micros"` // millionths of a dollar; 0 when the price is unknown
	Duration time.Duration `json:"duration"`    // nanoseconds
}

// AddModel asks for a version of a registry entry.
type AddModel struct {
	Name       string     `json:"name"`
	Run        string     `json:"run,omitempty"` // take what follows from the first step of this run
	Provider   string     `json:"provider,omitempty"`
	ID         string     `json:"id,omitempty"`
	Parameters Parameters `json:"parameters,omitzero"`
	System     string     `json:"system,omitempty"`
	Template   string     `json:"template,omitempty"`
	Tools      string     `json:"tools,omitempty"`
}

// Models keeps the model registry. A ref is a name, for its newest version, or
// name@version.
type Models interface {
	// AddModel adds a version; one with equal fields is returned as it is.
	AddModel(ctx context.Context, r AddModel) (Model, error)
	Model(ctx context.Context, ref string) (Model, error)
	Models(ctx context.Context) ([]Model, error)
}
