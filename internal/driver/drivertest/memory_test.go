package drivertest

import (
	"io"
	"strconv"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestMemory(t *testing.T) {
	Run(t, func(t *testing.T) Fixture {
		m := New()
		if err := m.PutTemplate(t.Context(), mayfly.Lock{Template: "sha256:x"}, strings.NewReader(""), io.Discard); err != nil {
			t.Fatal(err)
		}
		return Fixture{
			Driver: m, Template: "sha256:x",
			Write: func(name, content string) []string { return []string{"write", name, content} },
			Hear:  func(port int, word string) []string { return []string{"hear", strconv.Itoa(port), word} },
			Sleep: []string{"sleep"}, Fail: []string{"false"},
		}
	})
}
