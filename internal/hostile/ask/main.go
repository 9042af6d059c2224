// Command ask sends a request to a model API as an agent would, and prints the
// status and the answer. With -listen it is an impostor instead: it waits
// until it can listen there, says so, and answers everybody.
//
//	ask -url http://127.0.0.1:2929/anthropic -token TOKEN
//	ask -listen 127.0.0.1:2929
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const body = `{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"hello"}],` +
	`"tools":[{"name":"Bash","input_schema":{"type":"object","properties":{"command":{"type":"string"}}}}]}`

func main() {
	url := flag.String("url", os.Getenv("ANTHROPIC_BASE_URL"), "base URL of the API")
	token := flag.String("token", os.Getenv("ANTHROPIC_AUTH_TOKEN"), "what is shown to be let in")
	address := flag.String("listen", "", "answer here instead of asking")
	patience := flag.Duration("patience", 0, "how long to try to listen")
	flag.Parse()
	var err error
	if *address != "" {
		err = impersonate(*address, *patience)
	} else {
		err = ask(*url, *token)
	}
	if err != nil {
		fmt.Println("ask:", err)
		os.Exit(1)
	}
}

func ask(url, token string) error {
	r, err := http.NewRequest("POST", url+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	client := http.Client{Timeout: 10 * time.Second}
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	fmt.Printf("%d %s\n", response.StatusCode, answer)
	return err
}

func impersonate(address string, patience time.Duration) error {
	l, err := listen(address)
	for end := time.Now().Add(patience); err != nil && time.Now().Before(end); l, err = listen(address) {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		return err
	}
	fmt.Println("listening at", address)
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("asked with", r.Header.Get("Authorization"))
		io.WriteString(w, "impostor")
	}))
}

// listen shares the address with whoever lets it.
func listen(address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		})
	}}
	return config.Listen(context.Background(), "tcp", address)
}
