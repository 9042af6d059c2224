package crash

import (
	"context"
	"fmt"
	"time"

	"mayfly.dev/mayfly"
)

// stateOf is a template with a file, and a database with a row.
func stateOf(row string) (files map[string]string, db mayfly.LockedService) {
	files = map[string]string{
		"file":       "start\n",
		"schema.sql": "CREATE TABLE state (text text); INSERT INTO state VALUES ('" + row + "');",
	}
	return files, mayfly.LockedService{Name: "db", Port: 5432, Timeout: time.Minute,
		Postgres: &mayfly.LockedPostgres{Version: "15", Database: "shop", SQL: []string{"schema.sql"}}}
}

// prepare makes a template whose database begins with a row of its own, and an
// environment of it.
func (w *world) prepare(ctx context.Context) error {
	row := fmt.Sprint("row ", w.prepared)
	files, db := stateOf(row)
	lock, err := w.in.putTemplate(ctx, files, []mayfly.LockedService{db})
	if err != nil {
		return err
	}
	w.prepared++
	return w.createOf(ctx, lock.Template, content{"start", row})
}
