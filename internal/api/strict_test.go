package api

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestBodiesAreReadStrictly(t *testing.T) {
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	for name, c := range map[string]struct{ body, want string }{
		"good":            {`{"name":"a","labels":{"A":"1","a":"2"},"ttl":5}`, ""},
		"nested":          {`{"from":{"environment":"e","snapshot":"s"}}`, ""},
		"empty":           {``, "missing"},
		"unknown":         {`{"nam":"a"}`, `unknown field "nam"`},
		"unknown nested":  {`{"limits":{"gpu":1}}`, `body.limits: unknown field "gpu"`},
		"letter case":     {`{"Name":"a"}`, `unknown field "Name"`},
		"twice":           {`{"name":"a","name":"b"}`, `"name" occurs twice`},
		"label twice":     {`{"labels":{"a":"1","a":"2"}}`, `"a" occurs twice`},
		"null":            {`{"name":null}`, "body.name: null"},
		"null body":       {`null`, "body: null"},
		"wrong type":      {`{"ttl":"1h"}`, "ttl"},
		"array":           {`[]`, "array"},
		"two values":      {`{} {}`, "follows"},
		"cut":             {`{"name":"a"`, "unexpected EOF"},
		"deep":            {`{"labels":` + deep + `}`, "levels deep"},
		"too large":       {`{"name":"` + strings.Repeat("a", maxJSON) + `"}`, "over 1048576 bytes"},
		"not UTF-8":       {"{\"name\":\"\xff\"}", "not UTF-8"},
		"number overflow": {`{"ttl":99999999999999999999}`, "ttl"},
	} {
		t.Run(name, func(t *testing.T) {
			var v mayfly.CreateEnvironment
			err := decodeStrict(strings.NewReader(c.body), &v)
			if c.want == "" {
				if err != nil {
					t.Fatalf("err = %v, want none", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || mayfly.KindOf(err) != mayfly.Invalid {
				t.Errorf("err = %v (%v), want %q (%v)", err, mayfly.KindOf(err), c.want, mayfly.Invalid)
			}
		})
	}
}

func FuzzDecodeStrict(f *testing.F) {
	f.Add(`{"command":["a"],"create":{"labels":{"k":"v"},"limits":{"cpu":1.5}}}`)
	f.Add(`{"command":["a"],"create":null}`)
	f.Add(`{"a":[[[[{}]]]]}`)
	f.Add("{\"command\":[\"\\ud800\"]}")
	f.Fuzz(func(t *testing.T, body string) {
		var v, again mayfly.StartRun
		if decodeStrict(strings.NewReader(body), &v) != nil {
			return
		}
		// What was accepted must survive its own encoding.
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := decodeStrict(strings.NewReader(string(b)), &again); err != nil {
			t.Fatalf("%s was accepted, but its encoding %s is not: %v", body, b, err)
		}
		c, err := json.Marshal(again)
		if err != nil || !reflect.DeepEqual(b, c) {
			t.Errorf("encodings differ: %s, %s, %v", b, c, err)
		}
	})
}
