package control

import (
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

func TestProcessesBelongToTheRunThatWasUnderWay(t *testing.T) {
	e, _ := start(t)
	one := wait(t, e, startRun(t, e, create(), "", "write", "a", "1"))
	two := wait(t, e, startRun(t, e, nil, one.Environment, "write", "a", "2"))
	err := e.Started(t.Context(), one.Environment, []mayfly.Process{
		{Time: one.StartedAt, PID: 1}, {Time: one.EndedAt, PID: 2}, {Time: two.EndedAt, PID: 3}, {Time: two.EndedAt.Add(time.Hour), PID: 4},
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = e.Events(t.Context(), mayfly.EventFilter{Environment: one.Environment}, func(event mayfly.Event) error {
		if event.Type == "process.started" {
			got = append(got, event.Run)
		}
		return nil
	})
	if err != nil || len(got) != 3 || got[0] != one.ID || got[1] != two.ID || got[2] != "" {
		t.Errorf("got = %q, %v, want the first run, the second and none", got, err)
	}
}
