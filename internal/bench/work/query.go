package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// query asks the database that the variables PGHOST, PGUSER and so on name,
// and prints when the answer was there, in nanoseconds since 1970, and its
// first field.
func query(sql string) error {
	ctx := context.Background()
	conn, err := pgconn.Connect(ctx, "")
	if err != nil {
		return err
	}
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil {
		return err
	}
	now, field := time.Now().UnixNano(), ""
	if len(results) > 0 {
		if rows := results[len(results)-1].Rows; len(rows) > 0 && len(rows[0]) > 0 {
			field = string(rows[0][0])
		}
	}
	fmt.Println(now, field)
	return conn.Close(ctx)
}
