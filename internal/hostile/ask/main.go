// Command ask sends a request to a model API as an agent would, and prints the
// status and the answer.
//
//	ask -url http://127.0.0.1:2929/anthropic -token TOKEN
package main

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const body = `{"model":"m","max_tokens":10,"messages":[{"role":"user","content":"hello"}],` +
	`"tools":[{"name":"Bash","input_schema":{"type":"object","properties":{"command":{"type":"string"}}}}]}`

func main() {
	url := flag.String("url", os.Getenv("ANTHROPIC_BASE_URL"), "base URL of the API")
	token := flag.String("token", os.Getenv("ANTHROPIC_AUTH_TOKEN"), "what is shown to be let in")
	flag.Parse()
	client := http.Client{Timeout: 10 * time.Second}
	r, err := http.NewRequest("POST", *url+"/v1/messages", strings.NewReader(body))
	if err == nil {
		r.Header.Set("Authorization", "Bearer "+*token)
		r.Header.Set("Content-Type", "application/json")
		err = ask(client, r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "ask:", err)
		os.Exit(1)
	}
}

func ask(client http.Client, r *http.Request) error {
	response, err := client.Do(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	fmt.Printf("%d %s\n", response.StatusCode, answer)
	return err
}
