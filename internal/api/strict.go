package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"unicode/utf8"

	"mayfly.dev/mayfly"
)

// Bounds of JSON bodies.
const (
	maxJSON  = 1 << 20 // bytes
	maxDepth = 16      // nested objects and arrays
)

// decodeBody reads the request's JSON body into v, strictly.
func decodeBody(r *http.Request, v any) error {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		if t, _, err := mime.ParseMediaType(ct); err != nil || t != "application/json" {
			return mayfly.Errorf(mayfly.Invalid, "bad content type %q", ct).Hint("send application/json")
		}
	}
	return decodeStrict(r.Body, v)
}

// decodeStrict reads one JSON value into v: names must match exactly, occur
// once and be known; size and depth are bounded; nothing may follow.
func decodeStrict(r io.Reader, v any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxJSON+1))
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "read the JSON body: %w", err)
	}
	switch {
	case len(b) > maxJSON:
		return mayfly.Errorf(mayfly.Invalid, "the JSON body is over %d bytes", maxJSON)
	case len(bytes.TrimSpace(b)) == 0:
		return mayfly.Errorf(mayfly.Invalid, "the JSON body is missing")
	case !utf8.Valid(b):
		return mayfly.Errorf(mayfly.Invalid, "the JSON body is not UTF-8")
	}
	c := checker{dec: json.NewDecoder(bytes.NewReader(b))}
	if err := c.value(reflect.TypeOf(v).Elem(), "body", 0); err != nil {
		return mayfly.Errorf(mayfly.Invalid, "bad JSON: %w", err)
	}
	if _, err := c.dec.Token(); err != io.EOF {
		return mayfly.Errorf(mayfly.Invalid, "bad JSON: something follows the value")
	}
	if err := json.Unmarshal(b, v); err != nil {
		return mayfly.Errorf(mayfly.Invalid, "bad JSON: %w", err)
	}
	return nil
}

// checker walks JSON beside the Go type that it is meant for. It finds what
// encoding/json lets pass: names in other letter case, twice, or unknown, and
// null where a value belongs.
type checker struct{ dec *json.Decoder }

var unmarshalerType = reflect.TypeFor[json.Unmarshaler]()

func (c checker) value(t reflect.Type, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%s: over %d levels deep", path, maxDepth)
	}
	tok, err := c.dec.Token()
	if err != nil {
		return noEOF(err)
	}
	if t != nil {
		if k := t.Kind(); tok == nil && k != reflect.Pointer && k != reflect.Slice && k != reflect.Map {
			return fmt.Errorf("%s: null", path)
		}
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		if reflect.PointerTo(t).Implements(unmarshalerType) {
			t = nil // it has its own ideas of names
		}
	}
	switch tok {
	case json.Delim('{'):
		return c.object(t, path, depth)
	case json.Delim('['):
		var elem reflect.Type
		if t != nil && t.Kind() == reflect.Slice {
			elem = t.Elem()
		}
		for i := 0; c.dec.More(); i++ {
			if err := c.value(elem, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
		_, err := c.dec.Token()
		return noEOF(err)
	}
	return nil
}

func (c checker) object(t reflect.Type, path string, depth int) error {
	seen := map[string]bool{}
	for c.dec.More() {
		tok, err := c.dec.Token()
		if err != nil {
			return noEOF(err)
		}
		name, _ := tok.(string)
		if seen[name] {
			return fmt.Errorf("%s: %q occurs twice", path, name)
		}
		seen[name] = true
		elem, ok := member(t, name)
		if !ok {
			return fmt.Errorf("%s: unknown field %q", path, name)
		}
		if err := c.value(elem, path+"."+name, depth+1); err != nil {
			return err
		}
	}
	_, err := c.dec.Token()
	return noEOF(err)
}

// member is the type of an object's member; nil where anything goes.
func member(t reflect.Type, name string) (reflect.Type, bool) {
	if t == nil {
		return nil, true
	}
	switch t.Kind() {
	case reflect.Map:
		return t.Elem(), true
	case reflect.Struct:
		for f := range t.Fields() {
			if jsonName(f) == name {
				return f.Type, true
			}
		}
		return nil, false
	}
	return nil, true // json.Unmarshal says what is wrong with it
}

// jsonName is the name of a struct field in JSON, empty when it has none.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	switch {
	case name == "-" || !f.IsExported():
		return ""
	case name == "":
		return f.Name
	}
	return name
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
