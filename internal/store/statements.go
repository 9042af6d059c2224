package store

import (
	"context"
	"database/sql"
	"errors"
	"sync"
)

// statements are the prepared statements of a connection, or of a pool of
// them: parsing takes as long as running.
type statements struct {
	on       preparer
	mu       sync.Mutex // guards prepared
	prepared map[string]*sql.Stmt
}

type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

func newStatements(on preparer) *statements {
	return &statements{on: on, prepared: map[string]*sql.Stmt{}}
}

// of returns the statement of a query, which is one of the few in this
// package.
func (s *statements) of(ctx context.Context, query string) (*sql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.prepared[query]; st != nil {
		return st, nil
	}
	st, err := s.on.PrepareContext(ctx, query)
	if err == nil {
		s.prepared[query] = st
	}
	return st, err
}

func (s *statements) exec(ctx context.Context, query string, args ...any) error {
	st, err := s.of(ctx, query)
	if err == nil {
		_, err = st.ExecContext(ctx, args...)
	}
	return err
}

func (s *statements) query(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	st, err := s.of(ctx, query)
	if err != nil {
		return nil, err
	}
	return st.QueryContext(ctx, args...)
}

// Close closes the statements.
func (s *statements) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, st := range s.prepared {
		errs = append(errs, st.Close())
	}
	clear(s.prepared)
	return errors.Join(errs...)
}
