package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// query asks the database that the variables PGHOST, PGUSER and so on name,
// and prints when the answer was there, in nanoseconds since 1970, and its
// first field.
func query(sql string) error {
	answer, err := ask(sql)
	if err != nil {
		return err
	}
	fmt.Println(time.Now().UnixNano(), answer)
	return nil
}

// ask returns the first field of an answer.
func ask(sql string) (field string, err error) {
	ctx := context.Background()
	conn, err := pgconn.Connect(ctx, "")
	if err != nil {
		return "", err
	}
	defer conn.Close(ctx)
	results, err := conn.Exec(ctx, sql).ReadAll()
	if err != nil || len(results) == 0 {
		return "", err
	}
	if rows := results[len(results)-1].Rows; len(rows) > 0 && len(rows[0]) > 0 {
		field = string(rows[0][0])
	}
	return field, nil
}

// retryEvery is how often a client without a connection tries.
const retryEvery = 2 * time.Millisecond

// reconnect is a client that goes on: it says that it is connected, and when it
// is not any more, connects until it gets the answer that it wants, and prints
// as query does.
func reconnect(sql, want string) error {
	conn, err := pgconn.Connect(context.Background(), "")
	if err != nil {
		return err
	}
	fmt.Println("connected")
	if _, err := conn.Exec(context.Background(), "SELECT pg_sleep(600)").ReadAll(); err == nil {
		return errors.New("the connection did not end")
	}
	for {
		if answer, err := ask(sql); err == nil && answer == want {
			fmt.Println(time.Now().UnixNano(), answer)
			return nil
		}
		time.Sleep(retryEvery)
	}
}
