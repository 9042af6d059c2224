package api

import (
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

func isDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
}

func pathDigest(r *http.Request) (string, error) {
	d := r.PathValue("digest")
	if !isDigest(d) {
		return "", mayfly.Errorf(mayfly.Invalid, "bad digest %q", d).Hint("write sha256: and 64 hexadecimal digits")
	}
	return d, nil
}

func (s *Server) listTemplates(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Templates(r.Context())
	return answerList(w, list, err)
}

func (s *Server) getTemplate(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK)(s.svc.Template(r.Context(), r.PathValue("digest")))
}

func (s *Server) putImage(w http.ResponseWriter, r *http.Request) error {
	digest, err := pathDigest(r)
	if err != nil {
		return err
	}
	if err := s.svc.PutImage(r.Context(), digest, r.Body); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// putTemplate takes a form of two parts, in this order: lock (JSON) and
// workspace (a tar stream). While setup runs, its output goes back as records;
// the last record is the outcome. Errors before the first output are answered
// like any other.
func (s *Server) putTemplate(w http.ResponseWriter, r *http.Request) error {
	digest, err := pathDigest(r)
	if err != nil {
		return err
	}
	form, err := r.MultipartReader()
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "bad template upload: %w", err)
	}
	var lock mayfly.Lock
	part, err := nextPart(form, "lock")
	if err != nil {
		return err
	}
	if err := decodeStrict(part, &lock); err != nil {
		return err
	}
	if lock.Template != digest {
		return mayfly.Errorf(mayfly.Invalid, "the lock is of template %s, not of %s", lock.Template, digest)
	}
	workspace, err := nextPart(form, "workspace")
	if err != nil {
		return err
	}
	// Output goes back while the workspace is still coming in.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return fmt.Errorf("answer while reading: %w", err)
	}
	// After a full-duplex answer the connection is of no more use: net/http may
	// read it twice at the same time when the body was not read to its end.
	w.Header().Set("Connection", "close")
	files := &lastPart{part: workspace, body: r.Body}
	records := &recordWriter{w: w, begin: files.drain}
	t, err := s.svc.PutTemplate(r.Context(), lock, files, records)
	if err != nil {
		if !records.begun() {
			return err
		}
		return records.write(TemplateRecord{Error: s.explain(err, w.Header().Get("X-Request-Id"), "putTemplate")})
	}
	return records.write(TemplateRecord{Template: &t})
}

func nextPart(form *multipart.Reader, name string) (*multipart.Part, error) {
	part, err := form.NextRawPart()
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad template upload: part %q: %w", name, noEOF(err))
	}
	if part.FormName() != name {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad template upload: part %q in place of %q", part.FormName(), name).
			Hint("send lock, then workspace")
	}
	return part, nil
}

// lastPart is the workspace in the body of a request.
type lastPart struct {
	mu   sync.Mutex // one reader at a time
	part io.Reader
	body io.Reader
}

func (p *lastPart) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.part.Read(b)
}

// maxPadding bounds what may follow the end of the archive, in bytes.
const maxPadding = 4 << 20

// drain reads to the end of the body what the service has not read: the
// padding of the archive, the end of the form. Only then does net/http watch
// the connection, so that the request ends when the client leaves while setup
// goes on.
func (p *lastPart) drain() {
	if !p.mu.TryLock() {
		return // setup has not begun
	}
	defer p.mu.Unlock()
	rest := io.LimitReader(io.MultiReader(p.part, p.body), maxPadding)
	io.Copy(io.Discard, rest)
}

// recordPart bounds the output in one record, in bytes.
const recordPart = 32 << 10

// recordWriter sends what is written to it as records.
type recordWriter struct {
	mu      sync.Mutex // one writer on w at a time
	w       http.ResponseWriter
	begin   func() // called before the first record
	started bool
}

func (rw *recordWriter) Write(p []byte) (int, error) {
	for n := 0; n < len(p); {
		part := p[n:min(len(p), n+recordPart)]
		if err := rw.write(TemplateRecord{Output: part}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(p), nil
}

func (rw *recordWriter) begun() bool {
	rw.mu.Lock()
	defer rw.mu.Unlock()
	return rw.started
}

func (rw *recordWriter) write(r TemplateRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	rw.mu.Lock()
	defer rw.mu.Unlock()
	if !rw.started {
		rw.started = true
		rw.begin()
		rw.w.Header().Set("Content-Type", ndjson)
	}
	if _, err := (flushWriter{rw.w}).Write(append(b, '\n')); err != nil {
		return errClientLeft
	}
	return nil
}

var _ io.Writer = (*recordWriter)(nil)
