package gateway

import (
	"context"
	"io"
	"mime"
	"net/http"

	"mayfly.dev/mayfly"
)

// pathHeader names the path of a report in its recorded header, as HTTP/2
// does; no header of an agent can have this name.
const pathHeader = ":path"

// report takes what an agent says about itself, and lets it go on when that is
// saved.
func (d *door) report(w http.ResponseWriter, r *http.Request, rt route) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		faultf(http.StatusMethodNotAllowed, "%s takes POST only", r.URL.Path).write(w, "")
		return
	}
	adm, f := d.admit(r)
	var body []byte
	if f == nil {
		if body, f = d.readBody(w, r); f == nil {
			defer d.done(body)
		}
	}
	if f == nil {
		f = d.saveReport(r, adm, rt.report, body)
	}
	d.extend(w)
	if f != nil {
		f.write(w, "")
		return
	}
	if kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); kind == "application/x-protobuf" {
		w.Header().Set("Content-Type", kind) // an empty message is one of no bytes
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, "{}")
}

func (d *door) saveReport(r *http.Request, adm Admission, kind string, body []byte) *fault {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), d.g.o.Durable)
	defer cancel()
	header := cleanHeader(r.Header)
	header[pathHeader] = []string{r.URL.Path}
	content, err := d.g.recorder.WriteContent(ctx, adm.Run, mayfly.Content{Header: header, Body: body})
	if err == nil {
		err = d.g.runs.Report(ctx, adm.Environment, adm.Run, kind, content)
	}
	if mayfly.KindOf(err) == mayfly.Conflict { // it was on its way when the run ended
		d.g.log.Info("a report of an agent came too late", "env", d.env, "run", adm.Run, "kind", kind, "err", err)
		return faultf(http.StatusConflict, "the report came too late: the run has ended")
	}
	if err != nil {
		d.g.log.Error("a report of an agent cannot be recorded", "env", d.env, "run", adm.Run, "kind", kind, "err", err)
		return faultf(http.StatusServiceUnavailable, "the report cannot be recorded").again()
	}
	return nil
}
