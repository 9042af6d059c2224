package api

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/api/apitest"
)

// document is the part of OpenAPI 3.1 that the description uses. It is read
// strictly, so that nothing in it goes unchecked by mistake.
type document struct {
	OpenAPI    string                          `yaml:"openapi"`
	Info       map[string]string               `yaml:"info"`
	Servers    []map[string]string             `yaml:"servers"`
	Paths      map[string]map[string]operation `yaml:"paths"`
	Components struct {
		Parameters map[string]parameter `yaml:"parameters"`
		Responses  map[string]response  `yaml:"responses"`
		Schemas    map[string]schema    `yaml:"schemas"`
	} `yaml:"components"`
}

type operation struct {
	ID          string              `yaml:"operationId"`
	Summary     string              `yaml:"summary"`
	Parameters  []parameter         `yaml:"parameters"`
	RequestBody body                `yaml:"requestBody"`
	Responses   map[string]response `yaml:"responses"`
}

type parameter struct {
	Ref         string `yaml:"$ref"`
	Name        string `yaml:"name"`
	In          string `yaml:"in"`
	Required    bool   `yaml:"required"`
	Schema      schema `yaml:"schema"`
	Description string `yaml:"description"`
}

type body struct {
	Required bool                 `yaml:"required"`
	Content  map[string]mediaType `yaml:"content"`
}

type response struct {
	Ref         string               `yaml:"$ref"`
	Description string               `yaml:"description"`
	Content     map[string]mediaType `yaml:"content"`
}

type mediaType struct {
	Schema *schema `yaml:"schema"`
}

type schema struct {
	Ref              string            `yaml:"$ref"`
	Type             string            `yaml:"type"`
	Format           string            `yaml:"format"`
	Description      string            `yaml:"description"`
	Pattern          string            `yaml:"pattern"`
	Default          string            `yaml:"default"`
	Minimum          *int              `yaml:"minimum"`
	Enum             []string          `yaml:"enum"`
	Items            *schema           `yaml:"items"`
	Properties       map[string]schema `yaml:"properties"`
	Required         []string          `yaml:"required"`
	Additional       any               `yaml:"additionalProperties"`
	ContentEncoding  string            `yaml:"contentEncoding"`
	ContentMediaType string            `yaml:"contentMediaType"`
}

func readDocument(t *testing.T) document {
	t.Helper()
	var d document
	if err := yaml.UnmarshalWithOptions(openapi, &d, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return d
}

func TestDocumentAndRoutesNameTheSameOperations(t *testing.T) {
	d := readDocument(t)
	documented := map[string]operation{}
	for path, ops := range d.Paths {
		for method, op := range ops {
			documented[strings.ToUpper(method)+" "+path] = op
		}
	}
	ids := map[string]bool{}
	for _, rt := range routes {
		key := rt.method + " " + rt.pattern
		op, ok := documented[key]
		if !ok {
			t.Errorf("%s is not in the document", key)
			continue
		}
		delete(documented, key)
		if op.ID != rt.op || ids[op.ID] {
			t.Errorf("%s: operationId = %q, want %q, once", key, op.ID, rt.op)
		}
		ids[op.ID] = true
		if op.Summary == "" {
			t.Errorf("%s has no summary", key)
		}
		compareParameters(t, d, rt, op)
		compareRequest(t, rt, op)
		compareResponses(t, d, rt, op)
	}
	for key := range documented {
		t.Errorf("%s is in the document and not in the routes", key)
	}
}

func compareParameters(t *testing.T, d document, rt route, op operation) {
	t.Helper()
	got := map[string][]string{}
	for _, p := range op.Parameters {
		if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
			p = d.Components.Parameters[name]
		}
		got[p.In] = append(got[p.In], p.Name)
		if p.Schema.Type == "" || p.Required != (p.In == "path") {
			t.Errorf("%s: parameter %q has no type, or is wrongly required", rt.op, p.Name)
		}
	}
	var path []string
	for s := range strings.SplitSeq(rt.pattern, "/") {
		if strings.HasPrefix(s, "{") {
			path = append(path, strings.Trim(s, "{}"))
		}
	}
	if !slices.Equal(got["path"], path) {
		t.Errorf("%s: path parameters = %v, want %v", rt.op, got["path"], path)
	}
	slices.Sort(got["query"])
	want := slices.Sorted(slices.Values(rt.query))
	if !slices.Equal(got["query"], want) {
		t.Errorf("%s: query parameters = %v, want %v", rt.op, got["query"], want)
	}
}

func compareRequest(t *testing.T, rt route, op operation) {
	t.Helper()
	want := map[string]bool{}
	if rt.request != nil {
		want["application/json"] = true
		if m := op.RequestBody.Content["application/json"]; m.Schema != nil {
			compareSchema(t, rt.op+" request", *m.Schema, reflect.TypeOf(rt.request))
		} else {
			t.Errorf("%s: the document has no schema of the request", rt.op)
		}
	}
	if rt.accepts != "" {
		want[rt.accepts] = true
	}
	if got := op.RequestBody.Content; !sameKeys(got, want) {
		t.Errorf("%s: request types = %v, want %v", rt.op, slices.Collect(maps.Keys(got)), slices.Collect(maps.Keys(want)))
	}
}

func sameKeys[A, B any](a map[string]A, b map[string]B) bool {
	return slices.Equal(slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(b)))
}

func compareResponses(t *testing.T, d document, rt route, op operation) {
	t.Helper()
	want := map[string]string{} // status to name of the kind
	for _, k := range slices.Concat(everyKind, rt.kinds) {
		want[strconv.Itoa(k.HTTPStatus())] = string(k)
	}
	for status, kind := range want {
		if got := op.Responses[status].Ref; got != "#/components/responses/"+kind {
			t.Errorf("%s: response %s = %q, want that of %s", rt.op, status, got, kind)
		}
		if m := d.Components.Responses[kind].Content["application/json"]; m.Schema == nil || m.Schema.Ref != "#/components/schemas/Error" {
			t.Errorf("the response %s is no Error", kind)
		}
	}
	success := strconv.Itoa(rt.status)
	want[success] = ""
	if !sameKeys(op.Responses, want) {
		t.Errorf("%s: statuses = %v, want %v", rt.op, slices.Sorted(maps.Keys(op.Responses)), slices.Sorted(maps.Keys(want)))
	}
	content := op.Responses[success].Content
	if rt.response != nil {
		m := content["application/json"]
		if m.Schema == nil {
			t.Errorf("%s: the document has no schema of the answer", rt.op)
			return
		}
		compareSchema(t, rt.op+" answer", *m.Schema, reflect.TypeOf(rt.response))
	}
	if _, ok := content[rt.sends]; rt.sends != "" && !ok {
		t.Errorf("%s: the document does not say that it sends %s", rt.op, rt.sends)
	}
}

// TestSchemasAreThoseOfTheTypes compares every schema with its Go type, and
// wants each to be used.
func TestSchemasAreThoseOfTheTypes(t *testing.T) {
	d := readDocument(t)
	types := map[string]reflect.Type{}
	for _, v := range []any{mayfly.Error{}, mayfly.Change{}, TemplateRecord{}, mayfly.Lock{}} {
		collect(types, reflect.TypeOf(v))
	}
	for _, rt := range routes {
		for _, v := range []any{rt.request, rt.response} {
			if v != nil {
				collect(types, reflect.TypeOf(v))
			}
		}
	}
	for name, typ := range types {
		s, ok := d.Components.Schemas[name]
		if !ok {
			t.Errorf("the document has no schema %s", name)
			continue
		}
		delete(d.Components.Schemas, name)
		if s.Type != "object" || s.Additional != false {
			t.Errorf("schema %s is not a closed object", name)
		}
		var required []string
		fields := map[string]bool{}
		for f := range typ.Fields() {
			field := jsonName(f)
			if field == "" {
				continue
			}
			fields[field] = true
			if !strings.Contains(f.Tag.Get("json"), ",omit") {
				required = append(required, field)
			}
			compareSchema(t, name+"."+field, s.Properties[field], f.Type)
		}
		if !sameKeys(s.Properties, fields) {
			t.Errorf("%s: properties = %v, want %v", name, slices.Sorted(maps.Keys(s.Properties)), slices.Sorted(maps.Keys(fields)))
		}
		if !slices.Equal(s.Required, required) {
			t.Errorf("%s: required = %v, want %v", name, s.Required, required)
		}
	}
	for name := range d.Components.Schemas {
		t.Errorf("no operation uses the schema %s", name)
	}
}

func opaque(t reflect.Type) bool {
	return t == reflect.TypeFor[time.Time]() || t == reflect.TypeFor[json.RawMessage]()
}

func collect(types map[string]reflect.Type, t reflect.Type) {
	switch {
	case opaque(t):
	case t.Kind() == reflect.Pointer, t.Kind() == reflect.Slice, t.Kind() == reflect.Map:
		collect(types, t.Elem())
	case t.Kind() == reflect.Struct && types[t.Name()] == nil:
		types[t.Name()] = t
		for f := range t.Fields() {
			if jsonName(f) != "" {
				collect(types, f.Type)
			}
		}
	}
}

// enums are the values of string types, from the constants of the root
// package; their documentation is theirs.
var enums = map[reflect.Type][]string{
	reflect.TypeFor[mayfly.Phase](): {
		string(mayfly.Pending), string(mayfly.Ready), string(mayfly.Paused), string(mayfly.Stopped),
		string(mayfly.Deleting), string(mayfly.Deleted), string(mayfly.Failed),
	},
	reflect.TypeFor[mayfly.Isolation](): {string(mayfly.Native), string(mayfly.GVisor)},
	reflect.TypeFor[mayfly.ServiceState](): {
		string(mayfly.ServiceReady), string(mayfly.ServiceRestarting), string(mayfly.ServiceFailed), string(mayfly.ServiceStopped),
	},
	reflect.TypeFor[mayfly.RunPhase](): {
		string(mayfly.RunPending), string(mayfly.RunRunning), string(mayfly.RunExited),
		string(mayfly.RunKilled), string(mayfly.RunTimedOut), string(mayfly.RunFailed),
	},
	reflect.TypeFor[mayfly.RunKind](): {string(mayfly.AgentRun), string(mayfly.ExecRun)},
	reflect.TypeFor[mayfly.SnapshotKind](): {
		string(mayfly.BaselineSnapshot), string(mayfly.FinalSnapshot), string(mayfly.ManualSnapshot),
		string(mayfly.ForkSnapshot), string(mayfly.RollbackSnapshot), string(mayfly.StepSnapshot),
	},
	reflect.TypeFor[mayfly.Side]():       {string(mayfly.FilesSide), string(mayfly.DatabaseSide)},
	reflect.TypeFor[mayfly.ChangeKind](): {string(mayfly.Added), string(mayfly.Modified), string(mayfly.Removed), string(mayfly.Renamed)},
	reflect.TypeFor[mayfly.NodeKind](): {
		string(mayfly.PromptNode), string(mayfly.OutputNode), string(mayfly.ActionNode),
		string(mayfly.ResultNode), string(mayfly.SideNode), string(mayfly.CompactNode),
	},
	reflect.TypeFor[mayfly.OnDivergence](): {
		string(mayfly.StopOnDivergence), string(mayfly.ContinueOnDivergence), string(mayfly.LiveOnDivergence),
	},
	reflect.TypeFor[mayfly.ExactRecording](): {string(mayfly.ExactEncrypted), string(mayfly.ExactNone)},
	reflect.TypeFor[mayfly.Kind](): func() (list []string) {
		for _, k := range mayfly.Kinds() {
			list = append(list, string(k))
		}
		return list
	}(),
}

func compareSchema(t *testing.T, what string, s schema, typ reflect.Type) {
	t.Helper()
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	want, format := "", ""
	switch k := typ.Kind(); {
	case typ == reflect.TypeFor[time.Time]():
		want, format = "string", "date-time"
	case typ == reflect.TypeFor[json.RawMessage]():
		want = "object"
	case k == reflect.Struct:
		if s.Ref != "#/components/schemas/"+typ.Name() {
			t.Errorf("%s: $ref = %q, want %s", what, s.Ref, typ.Name())
		}
		return
	case k == reflect.Slice && typ.Elem().Kind() == reflect.Uint8:
		want = "string"
	case k == reflect.Slice:
		want = "array"
		if s.Items == nil {
			t.Errorf("%s: the document does not say of what the array is", what)
			return
		}
		compareSchema(t, what+"[]", *s.Items, typ.Elem())
	case k == reflect.Map:
		want = "object"
		element := "string"
		if typ.Elem().Kind() == reflect.Slice {
			element = "array"
		}
		if m, ok := s.Additional.(map[string]any); !ok || m["type"] != element {
			t.Errorf("%s: additionalProperties = %v, want %ss", what, s.Additional, element)
		}
	case k == reflect.String:
		want = "string"
		if !slices.Equal(s.Enum, enums[typ]) {
			t.Errorf("%s: enum = %v, want %v", what, s.Enum, enums[typ])
		}
	case k == reflect.Bool:
		want = "boolean"
	case k == reflect.Float64:
		want = "number"
	case k == reflect.Int64, k == reflect.Uint64, k == reflect.Int:
		want, format = "integer", "int64"
	case k == reflect.Uint16, k == reflect.Uint32:
		want = "integer"
	}
	if want == "" || s.Type != want || s.Format != format {
		t.Errorf("%s: type %q, format %q, want %q, %q", what, s.Type, s.Format, want, format)
	}
}

// methods are the service's methods behind operations that can fail by them.
var methods = map[string]string{
	"getInfo": "Info", "createEnvironment": "CreateEnvironment", "listEnvironments": "Environments", "getEnvironment": "Environment",
	"deleteEnvironment": "DeleteEnvironment", "pauseEnvironment": "PauseEnvironment", "resumeEnvironment": "ResumeEnvironment",
	"extendEnvironment": "ExtendEnvironment", "createSnapshot": "CreateSnapshot", "deleteSnapshot": "DeleteSnapshot", "listSnapshots": "Snapshots", "rollback": "Rollback",
	"diff": "Diff", "diffRows": "DiffRows", "hash": "Hash", "startRun": "StartRun", "listRuns": "Runs", "getRun": "Run", "waitRun": "WaitRun", "killRun": "KillRun",
	"attachRun": "AttachRun", "attachService": "AttachService", "getLogs": "AttachRun", "listTemplates": "Templates", "getTemplate": "Template", "putTemplate": "PutTemplate",
	"putImage": "PutImage", "listEvents": "Events",
	"getGraph": "Graph", "listExchanges": "Exchanges", "getContent": "Content", "forgetExact": "ForgetExact",
	"addModel": "AddModel", "getModel": "Model", "listModels": "Models",
}

// TestDocumentedErrorsHaveTheirStatus makes every operation fail in every way
// that is documented for it.
func TestDocumentedErrorsHaveTheirStatus(t *testing.T) {
	for _, rt := range routes {
		method, ok := methods[rt.op]
		if !ok {
			if rt.op != "getHealth" && rt.op != "getOpenAPI" {
				t.Errorf("%s: the test does not know its method", rt.op)
			}
			continue
		}
		for _, k := range slices.Concat(everyKind, rt.kinds) {
			svc := apitest.New()
			svc.FailWith(method, mayfly.Errorf(k, "wanted"))
			w := httptest.NewRecorder()
			New(svc, Options{Log: quiet}).ServeHTTP(duplex{w}, validRequest(rt))
			var e mayfly.Error
			if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != k.HTTPStatus() || e.Kind != k {
				t.Errorf("%s: status %d, %s, want %d, %s", rt.op, w.Code, w.Body, k.HTTPStatus(), k)
			}
			if calls := svc.Calls(); len(calls) != 1 || calls[0].Method != method {
				t.Errorf("%s: calls = %v, want %s", rt.op, calls, method)
			}
		}
	}
}

// duplex is a recorder that can answer while it reads, as a connection can.
type duplex struct{ *httptest.ResponseRecorder }

func (duplex) EnableFullDuplex() error { return nil }

func validRequest(rt route) *http.Request {
	digest := apitest.Digest("d")
	path := strings.NewReplacer("{ref}", "e", "{id}", "r", "{digest}", digest, "{model}", "m").Replace(rt.pattern)
	var content, contentType string
	switch {
	case rt.op == "extendEnvironment":
		content = `{"ttl":3600000000000}`
	case rt.request != nil:
		content = `{}`
	case rt.accepts == formData:
		contentType = "multipart/form-data; boundary=x"
		content = "--x\r\nContent-Disposition: form-data; name=\"lock\"\r\n\r\n{\"template\":\"" + digest + "\"}" +
			"\r\n--x\r\nContent-Disposition: form-data; name=\"workspace\"\r\n\r\n\r\n--x--\r\n"
	}
	r := httptest.NewRequest(rt.method, path, strings.NewReader(content))
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	if rt.op == "attachRun" || rt.op == "attachService" {
		r.Header.Set("Upgrade", "mayfly-attach/1")
	}
	return r
}
