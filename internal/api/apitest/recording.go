package apitest

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// recorded is what passed the gateway in a run.
type recorded struct {
	graph     mayfly.Graph
	exchanges []mayfly.Exchange
}

// Record makes the service have seen a run ask models: its graph, its
// exchanges, and their contents by digest.
func (s *Service) Record(run string, g mayfly.Graph, exchanges []mayfly.Exchange, contents map[string]mayfly.Content) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.Run = run
	s.recorded[run] = recorded{g, exchanges}
	for digest, c := range contents {
		s.contents[digest] = c
	}
	r := s.run(run)
	r.Steps, r.Exchanges = len(g.Steps), len(exchanges)
}

func (s *Service) Graph(ctx context.Context, id string) (mayfly.Graph, error) {
	if err := s.enter(ctx, "Graph"); err != nil {
		return mayfly.Graph{}, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err != nil {
		return mayfly.Graph{}, err
	}
	g := s.recorded[r.ID].graph
	g.Run = r.ID
	return g, nil
}

func (s *Service) Exchanges(ctx context.Context, id string) ([]mayfly.Exchange, error) {
	if err := s.enter(ctx, "Exchanges"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err != nil {
		return nil, err
	}
	return slices.Clone(s.recorded[r.ID].exchanges), nil
}

func (s *Service) Content(ctx context.Context, digest string) (io.ReadCloser, error) {
	if err := s.enter(ctx, "Content"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	c, ok := s.contents[digest]
	if !ok {
		return nil, mayfly.Errorf(mayfly.NotFound, "no content %s", digest)
	}
	text, err := json.Marshal(c)
	return io.NopCloser(bytes.NewReader(text)), err
}

func (s *Service) ForgetExact(ctx context.Context, id string) (mayfly.Run, error) {
	if err := s.enter(ctx, "ForgetExact"); err != nil {
		return mayfly.Run{}, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err != nil {
		return mayfly.Run{}, err
	}
	s.emit(ctx, "recording.forgotten", r.Environment, r.ID)
	return r.Run, nil
}

func (s *Service) AddModel(ctx context.Context, q mayfly.AddModel) (mayfly.Model, error) {
	if err := s.enter(ctx, "AddModel"); err != nil {
		return mayfly.Model{}, err
	}
	defer s.mu.Unlock()
	if err := mayfly.CheckName(q.Name); err != nil {
		return mayfly.Model{}, err
	}
	m := mayfly.Model{
		Name: q.Name, Version: 1, Provider: q.Provider, ID: q.ID, Parameters: q.Parameters, System: q.System,
		Template: q.Template, Tools: q.Tools, CreatedAt: s.Now(), Actor: mayfly.Actor(ctx),
	}
	text, err := json.Marshal(q)
	if err != nil {
		return m, err
	}
	m.Digest = Digest(string(text))
	for _, old := range s.models {
		if old.Name == m.Name && old.Digest == m.Digest {
			return old, nil
		}
		if old.Name == m.Name {
			m.Version = old.Version + 1
		}
	}
	s.models = append(s.models, m)
	s.emit(ctx, "model.added", "", q.Run)
	return m, nil
}

func (s *Service) Model(ctx context.Context, ref string) (mayfly.Model, error) {
	if err := s.enter(ctx, "Model"); err != nil {
		return mayfly.Model{}, err
	}
	defer s.mu.Unlock()
	name, version, exact := strings.Cut(ref, "@")
	for _, m := range slices.Backward(s.models) {
		if m.Name == name && (!exact || strconv.Itoa(m.Version) == version) {
			return m, nil
		}
	}
	return mayfly.Model{}, mayfly.Errorf(mayfly.NotFound, "no model %q in the registry", ref)
}

func (s *Service) Models(ctx context.Context) ([]mayfly.Model, error) {
	if err := s.enter(ctx, "Models"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	return slices.Clone(s.models), nil
}
