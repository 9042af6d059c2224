package control

import (
	"context"
	"io"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

func checkDigest(digest string) error {
	hex, ok := strings.CutPrefix(digest, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return mayfly.Errorf(mayfly.Invalid, "bad digest %q", digest).Hint("a digest is sha256: and 64 hexadecimal digits")
	}
	return nil
}

// PutImage implements mayfly.Templates.
func (e *Engine) PutImage(ctx context.Context, digest string, layout io.Reader) error {
	if err := checkDigest(digest); err != nil {
		return err
	}
	defer e.building(digest)()
	return e.Driver.PutImage(ctx, digest, layout)
}

// building keeps the server from leaving while something is prepared.
func (e *Engine) building(digest string) (done func()) {
	key := mayfly.NewID(digest, e.Now()) // two clients may prepare the same one
	e.mu.Lock()
	defer e.mu.Unlock()
	e.builds[key] = true
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.builds, key)
	}
}

// PutTemplate implements mayfly.Templates.
func (e *Engine) PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) (mayfly.Template, error) {
	if err := checkDigest(l.Template); err != nil {
		return mayfly.Template{}, err
	}
	if t, err := e.Template(ctx, l.Template); err == nil {
		if there, err := e.Driver.HasTemplate(ctx, l.Template); err == nil && there {
			return t, nil
		}
	}
	defer e.building(l.Template)()
	if err := e.Driver.PutTemplate(ctx, l, workspace, log); err != nil {
		return mayfly.Template{}, err
	}
	t := &template{mayfly.Template{Digest: l.Template, Lock: l, CreatedAt: e.Now().UTC()}}
	err := e.Store.Update(ctx, func(tx *store.Tx) error {
		if err := put(tx, t); err != nil {
			return err
		}
		return e.emit(tx, mayfly.Actor(ctx), "template.prepared", "", "", fields{
			"template": l.Template, "name": l.Name, "base": l.Base, "workspace": l.Workspace,
		})
	})
	return t.Template, err
}

// Templates implements mayfly.Templates.
func (e *Engine) Templates(ctx context.Context) ([]mayfly.Template, error) {
	var records []*template
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		records, err = decodeAll[template](tx.List(kindTemplate))
		return err
	})
	templates := make([]mayfly.Template, 0, len(records))
	for _, r := range records {
		templates = append(templates, r.Template)
	}
	return templates, err
}
