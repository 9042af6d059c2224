package store

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"testing"

	"mayfly.dev/mayfly"
)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestUpdateSavesObjectsAndEventsTogetherOrNotAtAll(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a dir?#", "..", "state.db")
	s := open(t, path)
	stop := errors.New("stop")
	err := s.Update(t.Context(), func(tx *Tx) error {
		tx.Put(Object{Kind: "env", ID: "a", Doc: []byte(`{}`)})
		tx.Emit(mayfly.Event{Type: "lost"})
		return stop
	})
	if !errors.Is(err, stop) {
		t.Fatalf("got = %v, want %v", err, stop)
	}
	err = s.Update(t.Context(), func(tx *Tx) error {
		if _, err := tx.Get("env", "a"); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("got = %v, want %v", err, sql.ErrNoRows)
		}
		if err := tx.Put(Object{Kind: "env", ID: "b", Open: true, Doc: []byte(`{"x":1}`)}); err != nil {
			return err
		}
		return tx.Emit(mayfly.Event{Type: "kept"})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, path)
	events, last, err := s.Outgoing(t.Context(), 0, 10)
	if err != nil || len(events) != 1 || events[0].Type != "kept" || events[0].ID != EventID(last) {
		t.Fatalf("got = %v %d %v, want the kept event", events, last, err)
	}
	if err := s.Sent(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	s.Update(t.Context(), func(tx *Tx) error { return tx.Emit(mayfly.Event{Type: "next"}) })
	if _, next, _ := s.Outgoing(t.Context(), 0, 10); next <= last {
		t.Errorf("number %d after %d: numbers must not repeat", next, last)
	}
}

func TestNamesAreUniqueAmongOpenObjects(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	put := func(id string, open bool) error {
		return s.Update(t.Context(), func(tx *Tx) error {
			return tx.Put(Object{Kind: "env", ID: id, Name: "web", Open: open, Doc: []byte(`{}`)})
		})
	}
	if err := put("a", true); err != nil {
		t.Fatal(err)
	}
	if err := put("b", true); !errors.Is(err, ErrNameTaken) {
		t.Errorf("got = %v, want %v", err, ErrNameTaken)
	}
	if err := put("a", false); err != nil {
		t.Fatal(err)
	}
	if err := put("b", true); err != nil {
		t.Errorf("got = %v, want the name to be free again", err)
	}
}

func TestListPrefixTakesTheIDAsIs(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	s.Update(t.Context(), func(tx *Tx) error {
		for _, id := range []string{"env-1", "env-12", "env-2", "env-%"} {
			tx.Put(Object{Kind: "env", ID: id, Doc: []byte(`{}`)})
		}
		return nil
	})
	for prefix, want := range map[string]int{"env-1": 2, "env-%": 1, "env-_": 0, "": 4} {
		s.View(t.Context(), func(tx *Tx) error {
			if got, err := tx.ListPrefix("env", prefix); len(got) != want || err != nil {
				t.Errorf("prefix %q: got = %d, %v, want %d", prefix, len(got), err, want)
			}
			return nil
		})
	}
}

func TestOpenRefusesANewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	s.write.ExecContext(t.Context(), "PRAGMA user_version = 99")
	s.Close()
	if _, err := Open(t.Context(), path); mayfly.KindOf(err) != mayfly.Unsupported {
		t.Errorf("got = %v, want kind %v", err, mayfly.Unsupported)
	}
}

func TestEventNumberInvertsEventID(t *testing.T) {
	for id, want := range map[string]bool{EventID(7): true, EventID(1 << 40): true, "evt-7": false, "x": false, "": false} {
		if _, ok := EventNumber(id); ok != want {
			t.Errorf("%q: got = %v, want %v", id, ok, want)
		}
	}
}

func BenchmarkUpdate(b *testing.B) {
	s, err := Open(b.Context(), filepath.Join(b.TempDir(), "state.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	for b.Loop() {
		s.Update(context.Background(), func(tx *Tx) error {
			tx.Put(Object{Kind: "env", ID: "a", Open: true, Doc: []byte(`{"some":"state"}`)})
			return tx.Emit(mayfly.Event{Type: "x"})
		})
	}
}

func TestLookUpsSeeWhatTheUpdateHasPutAndNothingOfOneThatFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open(t, path)
	check := func(s *Store, want string) {
		t.Helper()
		s.View(t.Context(), func(tx *Tx) error {
			got := ""
			for _, find := range []func() ([]Object, error){
				func() ([]Object, error) { return tx.ListOpen("env") },
				func() ([]Object, error) { return tx.ListOpenOf("env", "p") },
				func() ([]Object, error) { o, err := tx.Named("env", "web"); return []Object{o}, err },
				func() ([]Object, error) { o, err := tx.Get("env", "a"); return []Object{o}, err },
			} {
				objects, err := find()
				if err != nil && !errors.Is(err, sql.ErrNoRows) {
					t.Error(err)
				}
				for _, o := range objects {
					got += string(o.Doc)
				}
				got += ";"
			}
			if got != want {
				t.Errorf("got = %q, want %q", got, want)
			}
			return nil
		})
	}
	put := func(doc string, open bool, result error) {
		t.Helper()
		err := s.Update(t.Context(), func(tx *Tx) error {
			if err := tx.Put(Object{Kind: "env", ID: "a", Parent: "p", Name: "web", Open: open, Doc: []byte(doc)}); err != nil {
				return err
			}
			if o, err := tx.Get("env", "a"); err != nil || string(o.Doc) != doc {
				t.Errorf("get: got = %s, %v, want %s", o.Doc, err, doc)
			}
			if list, err := tx.ListOpen("env"); err != nil || (len(list) == 1) != open {
				t.Errorf("list: got = %v, %v, want open = %v", list, err, open)
			}
			return result
		})
		if !errors.Is(err, result) {
			t.Errorf("got = %v, want %v", err, result)
		}
	}
	check(s, ";;;;")
	put("1", true, nil)
	check(s, "1;1;1;1;")
	put("2", false, errors.ErrUnsupported)
	check(s, "1;1;1;1;")
	s.Close()
	s = open(t, path)
	check(s, "1;1;1;1;")
	put("3", false, nil)
	check(s, ";;;3;")
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.Delete("env", "a") }); err != nil {
		t.Fatal(err)
	}
	check(s, ";;;;")
}

func TestWhatIsDerivedIsSyncedBeforeItsEventsGoOn(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "state.db"))
	update := func(derived bool) {
		t.Helper()
		err := s.Update(t.Context(), func(tx *Tx) error {
			if derived {
				tx.Derived()
			}
			return tx.Emit(mayfly.Event{Type: "x"})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	update(true)
	if !s.unsynced {
		t.Error("a derived update waited for the disk")
	}
	if events, _, err := s.Outgoing(t.Context(), 0, 10); err != nil || len(events) != 1 || s.unsynced {
		t.Errorf("got = %v, %v, unsynced %v, want one event that is on disk", events, err, s.unsynced)
	}
	update(true)
	update(false)
	if s.unsynced {
		t.Error("an update left something unsynced")
	}
}
