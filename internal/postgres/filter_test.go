package postgres

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func filtered(t testing.TB, dump string) (out string, notes []string, err error) {
	t.Helper()
	f := newFilter(strings.NewReader(dump), Install{Major: 15}, "shop", []string{"mayfly", "app"})
	f.note = func(format string, args ...any) { notes = append(notes, format) }
	b, err := io.ReadAll(f)
	return string(b), notes, err
}

func TestFilterLeavesOutWhatHasNoPlaceInABaseline(t *testing.T) {
	for in, want := range map[string]string{
		"ALTER TABLE public.t OWNER TO bob;\n":                                                              "\n",
		"ALTER TABLE \"a b\" OWNER TO \"Bob \"\"x\";\n":                                                     "\n",
		"CREATE DATABASE shop WITH TEMPLATE = template0;\n":                                                 "\n",
		"\\connect shop\n":                                                                                  "\n",
		"\\restrict abc\nSELECT 1;\n\\unrestrict abc\n":                                                     "\nSELECT 1;\n\n",
		"SET default_tablespace = fast;\n":                                                                  "SET default_tablespace = '';\n",
		"SET default_tablespace = '';\n":                                                                    "SET default_tablespace = '';\n",
		"GRANT SELECT ON TABLE t TO bob;\nGRANT INSERT ON TABLE t TO bob;\n":                                "CREATE ROLE \"bob\" NOLOGIN; GRANT SELECT ON TABLE t TO bob;\nGRANT INSERT ON TABLE t TO bob;\n",
		"GRANT SELECT ON TABLE t TO PUBLIC;\n":                                                              "GRANT SELECT ON TABLE t TO PUBLIC;\n",
		"GRANT SELECT ON TABLE t TO app;\n":                                                                 "GRANT SELECT ON TABLE t TO app;\n",
		"GRANT SELECT ON TABLE t TO pg_monitor;\n":                                                          "GRANT SELECT ON TABLE t TO pg_monitor;\n",
		"CREATE POLICY p ON t TO a, \"b, c\" USING (true);\n":                                               "CREATE ROLE \"a\" NOLOGIN; CREATE ROLE \"b, c\" NOLOGIN; CREATE POLICY p ON t TO a, \"b, c\" USING (true);\n",
		"INSERT INTO t VALUES ('x\nALTER TABLE t OWNER TO bob;\n\\connect y\n');\n":                         "INSERT INTO t VALUES ('x\nALTER TABLE t OWNER TO bob;\n\\connect y\n');\n",
		"COPY t (a) FROM stdin;\nALTER TABLE t OWNER TO bob;\n\\.\nALTER TABLE t OWNER TO bob;\n":           "COPY t (a) FROM stdin;\nALTER TABLE t OWNER TO bob;\n\\.\n\n",
		"CREATE FUNCTION f() AS $x$\nALTER TABLE t OWNER TO bob;\n' $$ $x$;\nALTER TABLE t OWNER TO bob;\n": "CREATE FUNCTION f() AS $x$\nALTER TABLE t OWNER TO bob;\n' $$ $x$;\n\n",
		"/* a /* b\n*/\nALTER TABLE t OWNER TO bob;\n*/\nALTER TABLE t OWNER TO bob;\n":                     "/* a /* b\n*/\nALTER TABLE t OWNER TO bob;\n*/\n\n",
		"-- it's\nALTER TABLE t OWNER TO bob;\n":                                                            "-- it's\n\n",
		"SELECT 1":                                                                                          "SELECT 1",
	} {
		got, _, err := filtered(t, in)
		if err != nil || got != want {
			t.Errorf("%q becomes %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestFilterSaysEachThingOnce(t *testing.T) {
	_, notes, err := filtered(t, strings.Repeat("ALTER TABLE t OWNER TO bob;\nSET default_tablespace = fast;\nGRANT SELECT ON TABLE t TO carol;\n", 3))
	if err != nil || len(notes) != 3 {
		t.Errorf("notes = %q, %v, want three", notes, err)
	}
}

func TestFilterPassesLongLines(t *testing.T) {
	long := strings.Repeat("x", 3*lineBuffer)
	in := "COPY t (a) FROM stdin;\n" + long + "\n\\.\nINSERT INTO t VALUES ('" + long + "\nALTER TABLE t OWNER TO bob;\n');\nALTER TABLE t OWNER TO bob;\n"
	got, _, err := filtered(t, in)
	want := strings.TrimSuffix(in, "ALTER TABLE t OWNER TO bob;\n") + "\n"
	if err != nil || got != want {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(want))
	}
}

func TestFilterRefusesOtherDumps(t *testing.T) {
	for _, in := range []string{"-- PostgreSQL database cluster dump\n", "-- Dumped from database version 16.1 (Debian)\n"} {
		if _, _, err := filtered(t, in); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%q: error = %v, want invalid", in, err)
		}
	}
}

// The filter reads what it is not sure about; it must neither lose data nor
// lines.
func FuzzFilterKeepsLines(f *testing.F) {
	f.Add([]byte("COPY t FROM stdin;\n1\n\\.\nALTER TABLE t OWNER TO bob;\n"))
	f.Add([]byte("CREATE FUNCTION f() AS $$\n'\n$$;\nGRANT a TO \"b\";\n\\connect x\n"))
	f.Add([]byte(awkwardDump))
	f.Fuzz(func(t *testing.T, b []byte) {
		filter := newFilter(bytes.NewReader(b), Install{Major: 15}, "shop", nil)
		out, err := io.ReadAll(filter)
		if err != nil {
			return
		}
		if got, want := bytes.Count(out, []byte("\n")), bytes.Count(b, []byte("\n")); got != want {
			// A last line without its end may become an empty one.
			if got != want+1 || bytes.HasSuffix(b, []byte("\n")) {
				t.Errorf("lines = %d, want %d", got, want)
			}
		}
	})
}

const awkwardDump = "-- Dumped from database version 15.1\nSET default_tablespace = x;\nCREATE POLICY p ON t TO a, b USING (c);\nCREATE USER MAPPING FOR d SERVER e;\nALTER DEFAULT PRIVILEGES FOR ROLE f GRANT SELECT ON TABLES TO g;\n/* ' */ SELECT $a$ ; $a$, \"x\"\"y\";\n"

func TestProblemsOfPsqlAreUnderstood(t *testing.T) {
	for out, want := range map[string]problem{
		"psql:<stdin>:3: ERROR:  syntax error at or near \"x\"\nLINE 2: x y\n        ^\npsql:<stdin>:3: STATEMENT:  SELECT\nx y;\n": {2,
			"SELECT\nx y;", "syntax error at or near \"x\"\nLINE 2: x y\n        ^"},
		"psql:<stdin>:9: NOTICE:  table does not exist\npsql:<stdin>:12: ERROR:  no\nDETAIL:  really\n": {12, "", "no\nDETAIL:  really"},
		"psql:<stdin>:2: error: invalid command \\frobnicate\n":                                         {2, "", "invalid command \\frobnicate"},
	} {
		if got, ok := parseProblem(out); !ok || got != want {
			t.Errorf("%q = %+v, want %+v", out, got, want)
		}
	}
	if _, ok := parseProblem("psql: error: connection failed"); ok {
		t.Error("a problem without a line is one of a statement")
	}
}

func FuzzParseProblem(f *testing.F) {
	f.Add("psql:<stdin>:3: ERROR:  x\npsql:<stdin>:3: STATEMENT:  y\nz\n")
	f.Add("psql:<stdin>:-9: ERROR:  extension \"a\" is not available\n")
	f.Fuzz(func(t *testing.T, out string) {
		if p, ok := parseProblem(out); ok && (p.line < 0 || p.message == "") {
			t.Errorf("problem = %+v", p)
		}
		missingExtension(out)
	})
}
