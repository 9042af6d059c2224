package apitest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/aymanbagabas/go-udiff"

	"mayfly.dev/mayfly"
)

// Digest is the digest of some text, in the form that the API uses.
func Digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *Service) take(ctx context.Context, e *environment, kind mayfly.SnapshotKind, run, label string) *snapshot {
	number := 1
	for _, n := range s.snapshots {
		if n.Environment == e.ID {
			number++
		}
	}
	now := s.Now()
	n := &snapshot{mayfly.Snapshot{
		ID: mayfly.NewID("snap", now), Environment: e.ID, Number: number, Kind: kind, Run: run, Label: label, Ready: true, CreatedAt: now,
	}, maps.Clone(e.files)}
	s.snapshots = append(s.snapshots, n)
	s.emit(ctx, "snapshot.created", e.ID, run)
	return n
}

func (s *Service) snapshotOf(e *environment, ref string) (*snapshot, error) {
	for _, n := range s.snapshots {
		if n.Environment == e.ID && n.Ready && (n.ID == ref || strconv.Itoa(n.Number) == ref) {
			return n, nil
		}
	}
	return nil, mayfly.Errorf(mayfly.NotFound, "no snapshot %q of %s", ref, e.Name).Hint("list them with: mayfly snapshot list %s", e.Name)
}

func (s *Service) CreateSnapshot(ctx context.Context, env, label string) (mayfly.Snapshot, error) {
	if err := s.enter(ctx, "CreateSnapshot"); err != nil {
		return mayfly.Snapshot{}, err
	}
	defer s.mu.Unlock()
	e, err := s.live(env)
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	return s.take(ctx, e, mayfly.ManualSnapshot, "", label).Snapshot, nil
}

func (s *Service) Snapshots(ctx context.Context, env string) ([]mayfly.Snapshot, error) {
	if err := s.enter(ctx, "Snapshots"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	e, err := s.find(env)
	if err != nil {
		return nil, err
	}
	var list []mayfly.Snapshot
	for _, n := range s.snapshots {
		if n.Environment == e.ID {
			list = append(list, n.Snapshot)
		}
	}
	return list, nil
}

func (s *Service) DeleteSnapshot(ctx context.Context, env, ref string) (mayfly.Snapshot, error) {
	if err := s.enter(ctx, "DeleteSnapshot"); err != nil {
		return mayfly.Snapshot{}, err
	}
	defer s.mu.Unlock()
	e, err := s.live(env)
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	n, err := s.snapshotOf(e, ref)
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	n.Ready, n.DeletedAt = false, s.Now()
	s.emit(ctx, "snapshot.deleted", e.ID, n.Run)
	return n.Snapshot, nil
}

func (s *Service) Rollback(ctx context.Context, env, ref string, only mayfly.Side) (mayfly.Snapshot, error) {
	if err := s.enter(ctx, "Rollback"); err != nil {
		return mayfly.Snapshot{}, err
	}
	defer s.mu.Unlock()
	e, err := s.live(env)
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	if ref == "" {
		for _, r := range s.runs {
			if r.Environment == e.ID && r.Baseline != "" {
				ref = r.Baseline
			}
		}
	}
	to, err := s.snapshotOf(e, ref)
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	if only == mayfly.DatabaseSide {
		return mayfly.Snapshot{}, mayfly.Errorf(mayfly.Invalid, "environment %s has no services whose data could be rolled back", e.Name)
	}
	replaced := s.take(ctx, e, mayfly.RollbackSnapshot, "", "")
	e.files = maps.Clone(to.files)
	return replaced.Snapshot, nil
}

// state returns the files of a snapshot; of the live state when ref is empty.
func (s *Service) state(e *environment, ref string) (Files, error) {
	if ref == "" {
		return e.files, nil
	}
	n, err := s.snapshotOf(e, ref)
	if err != nil {
		return nil, err
	}
	return n.files, nil
}

func (s *Service) Diff(ctx context.Context, r mayfly.DiffRequest) (io.ReadCloser, error) {
	if err := s.enter(ctx, "Diff"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	e, err := s.live(r.Environment)
	if err != nil {
		return nil, err
	}
	from := Files{}
	if t := s.templates[e.Template]; t != nil {
		from = t.files
	}
	if r.From != "" {
		if from, err = s.state(e, r.From); err != nil {
			return nil, err
		}
	}
	to, err := s.state(e, r.To)
	if err != nil {
		return nil, err
	}
	text, err := difference(from, to, r.Format)
	if err != nil {
		return nil, err
	}
	if broken := s.fail["Diff.Read"]; broken != nil {
		return io.NopCloser(io.MultiReader(bytes.NewReader(text), failingReader{broken})), nil
	}
	return io.NopCloser(bytes.NewReader(text)), nil
}

// DiffRows streams a line that says what was asked for.
func (s *Service) DiffRows(ctx context.Context, r mayfly.RowsRequest) (io.ReadCloser, error) {
	if err := s.enter(ctx, "DiffRows"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	e, err := s.live(r.Environment)
	if err != nil {
		return nil, err
	}
	for _, ref := range []string{r.From, r.To} {
		if _, err := s.state(e, ref); err != nil {
			return nil, err
		}
	}
	r.Environment = e.Name
	text, err := json.Marshal(r)
	return io.NopCloser(bytes.NewReader(append(text, '\n'))), err
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func difference(from, to Files, format string) ([]byte, error) {
	var changes []mayfly.Change
	var patch strings.Builder
	paths := maps.Clone(from)
	maps.Copy(paths, to)
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		a, inA := from[p]
		b, inB := to[p]
		if a == b && inA == inB {
			continue
		}
		c := mayfly.Change{Kind: mayfly.Modified, Path: p, OldSize: int64(len(a)), NewSize: int64(len(b)), OldMode: 0o100644, NewMode: 0o100644}
		oldName, newName, mode := "a/"+p, "b/"+p, ""
		switch {
		case !inA:
			c.Kind, c.OldMode, oldName, mode = mayfly.Added, 0, "/dev/null", "new file mode 100644\n"
		case !inB:
			c.Kind, c.NewMode, newName, mode = mayfly.Removed, 0, "/dev/null", "deleted file mode 100644\n"
		}
		index := "index " + blobID(a, inA) + ".." + blobID(b, inB)
		if mode == "" {
			index += " 100644"
		}
		text := udiff.Unified(oldName, newName, a, b)
		for line := range strings.Lines(text) {
			switch {
			case strings.HasPrefix(line, "+++") || strings.HasPrefix(line, "---"):
			case strings.HasPrefix(line, "+"):
				c.Inserted++
			case strings.HasPrefix(line, "-"):
				c.Deleted++
			}
		}
		changes = append(changes, c)
		fmt.Fprintf(&patch, "diff --git a/%s b/%s\n%s%s\n%s", p, p, mode, index, text)
	}
	switch format {
	case "json":
		if changes == nil {
			changes = []mayfly.Change{}
		}
		return json.Marshal(changes)
	case "stat":
		return fmt.Appendf(nil, " %d files changed\n", len(changes)), nil
	case "", "patch":
		return []byte(patch.String()), nil
	}
	return nil, mayfly.Errorf(mayfly.Invalid, "unknown diff format %q", format)
}

// blobID is the name that git gives to a file's content.
func blobID(content string, exists bool) string {
	if !exists {
		return strings.Repeat("0", 2*sha1.Size)
	}
	sum := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(content), content))
	return hex.EncodeToString(sum[:])
}

func (s *Service) Hash(ctx context.Context, env, ref, path string) (string, error) {
	if err := s.enter(ctx, "Hash"); err != nil {
		return "", err
	}
	defer s.mu.Unlock()
	e, err := s.live(env)
	if err != nil {
		return "", err
	}
	files, err := s.state(e, ref)
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for _, p := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(&text, "%q %q\n", p, files[p])
	}
	return Digest(text.String()), nil
}

func (s *Service) PutImage(ctx context.Context, digest string, layout io.Reader) error {
	if err := s.enter(ctx, "PutImage"); err != nil {
		return err
	}
	s.mu.Unlock()
	n, err := io.Copy(io.Discard, layout)
	if err != nil {
		return fmt.Errorf("read image: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[digest] = int(n)
	return nil
}

func (s *Service) PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) (mayfly.Template, error) {
	if err := s.enter(ctx, "PutTemplate"); err != nil {
		return mayfly.Template{}, err
	}
	defer s.mu.Unlock()
	if t := s.templates[l.Template]; t != nil {
		return t.Template, nil
	}
	if _, ok := s.images[l.Base.Digest]; l.Base.Kind == "image" && !ok {
		return mayfly.Template{}, mayfly.Errorf(mayfly.Missing, "image %s is not here", l.Base.Digest)
	}
	s.mu.Unlock()
	files, err := readTar(workspace)
	for _, c := range l.Setup {
		if err == nil {
			_, err = fmt.Fprintf(log, "$ %s\n", c)
		}
		if err == nil && c == "wait" {
			<-ctx.Done()
			err = ctx.Err()
		}
		if err == nil && c == "false" {
			err = mayfly.Errorf(mayfly.Invalid, "setup command %q ended with status 1", c)
		}
	}
	s.mu.Lock()
	if err != nil {
		s.emit(ctx, "template.failed", "", "")
		return mayfly.Template{}, err
	}
	t := &template{mayfly.Template{Digest: l.Template, Lock: l, CreatedAt: s.Now()}, files}
	s.templates[l.Template] = t
	s.emit(ctx, "template.prepared", "", "")
	return t.Template, nil
}

func readTar(r io.Reader) (Files, error) {
	files := Files{}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files, nil
		}
		if err != nil {
			return nil, mayfly.Errorf(mayfly.Invalid, "bad workspace: %w", err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return nil, mayfly.Errorf(mayfly.Invalid, "bad workspace: %w", err)
		}
		if h.Typeflag == tar.TypeReg {
			files[h.Name] = string(b)
		}
	}
}

func (s *Service) Template(ctx context.Context, digest string) (mayfly.Template, error) {
	if err := s.enter(ctx, "Template"); err != nil {
		return mayfly.Template{}, err
	}
	defer s.mu.Unlock()
	if t := s.templates[digest]; t != nil {
		return t.Template, nil
	}
	return mayfly.Template{}, mayfly.Errorf(mayfly.NotFound, "no template %s", digest)
}

func (s *Service) Templates(ctx context.Context) ([]mayfly.Template, error) {
	if err := s.enter(ctx, "Templates"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var list []mayfly.Template
	for _, d := range slices.Sorted(maps.Keys(s.templates)) {
		list = append(list, s.templates[d].Template)
	}
	return list, nil
}
