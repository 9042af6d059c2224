package main

import (
	"bytes"
	"context"
	"errors"
	"io"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agreement"
)

// maxCompared bounds how much of a run's output is looked at, in bytes.
const maxCompared = 16 << 20

// outcome collects what of an ended run is compared.
func (a *app) outcome(ctx context.Context, r mayfly.Run) (o agreement.Outcome, err error) {
	o.Run, o.Tree = r, r.Tree
	if o.Tree == "" && r.Final != "" {
		if o.Tree, err = a.svc().Hash(ctx, r.Environment, r.Final, ""); err != nil {
			return o, err
		}
	}
	if r.Exchanges > 0 {
		if o.Graph, err = a.svc().Graph(ctx, r.ID); err != nil {
			return o, err
		}
	}
	return o, nil
}

// outputOf reads what a run wrote to both of its streams.
func (a *app) outputOf(ctx context.Context, r mayfly.Run) ([]byte, error) {
	att, err := a.svc().AttachRun(ctx, r.ID, false)
	if err != nil {
		return nil, err
	}
	defer att.Close()
	var b bytes.Buffer
	for b.Len() < maxCompared {
		o, err := att.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if o.Stream != mayfly.Notice {
			b.Write(o.Data)
		}
	}
	return b.Bytes(), nil
}

// filesOf says what a run did to each file since the given snapshot.
func (a *app) filesOf(ctx context.Context, r mayfly.Run, from string) (map[string]string, error) {
	body, err := a.svc().Diff(ctx, mayfly.DiffRequest{Environment: r.Environment, From: from, To: r.Final, Format: "patch"})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return agreement.Files(body)
}
