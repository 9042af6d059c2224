// Command agent is the least that a coding agent can be: it asks a model over
// the Anthropic Messages API, and does what that says. It finds the model where
// ANTHROPIC_BASE_URL is, and shows it ANTHROPIC_AUTH_TOKEN. Its conversation is
// in its home, so that another one can go on with it.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
)

type block struct {
	Type    string          `json:"type"`
	Text    string          `json:"text,omitempty"`
	ID      string          `json:"id,omitempty"`
	Name    string          `json:"name,omitempty"`
	Input   json.RawMessage `json:"input,omitempty"`
	Call    string          `json:"tool_use_id,omitempty"`
	Content string          `json:"content,omitempty"`
	Failed  bool            `json:"is_error,omitempty"`
}

type message struct {
	Role    string  `json:"role"`
	Content []block `json:"content"`
}

type agent struct {
	model        string
	temperature  float64
	file         string // of the conversation
	conversation []message
}

func main() {
	prompt := flag.String("p", "", "what to do")
	goOn := flag.Bool("continue", false, "go on with the last conversation")
	a := agent{file: filepath.Join(os.Getenv("HOME"), "conversation.json")}
	flag.StringVar(&a.model, "model", "scripted", "model to ask")
	flag.Float64Var(&a.temperature, "temperature", 0, "of the model")
	flag.Parse()
	if err := a.run(*prompt, *goOn); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func (a *agent) run(prompt string, goOn bool) error {
	if goOn {
		b, err := os.ReadFile(a.file)
		if err == nil {
			err = json.Unmarshal(b, &a.conversation)
		}
		if err != nil {
			return err
		}
	} else {
		a.conversation = []message{{"user", []block{{Type: "text", Text: prompt}}}}
	}
	for {
		if last := a.conversation[len(a.conversation)-1]; last.Role == "user" {
			if err := a.save(); err != nil {
				return err
			}
			answer, err := a.ask()
			if err != nil {
				return err
			}
			a.conversation = append(a.conversation, message{"assistant", answer})
		}
		results := a.act(a.conversation[len(a.conversation)-1].Content)
		if len(results) == 0 {
			return nil
		}
		a.conversation = append(a.conversation, message{"user", results})
	}
}

// save keeps the conversation before each question, so that what a step begins
// with has all that came before it.
func (a *agent) save() error {
	b, err := json.Marshal(a.conversation)
	if err != nil {
		return err
	}
	return os.WriteFile(a.file, b, 0o600)
}

const tools = `[
	{"name": "Bash", "description": "Run a command.", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}},
	{"name": "Write", "description": "Write a file.", "input_schema": {"type": "object", "properties": {"file_path": {"type": "string"}, "content": {"type": "string"}}, "required": ["file_path", "content"]}}
]`

func (a *agent) ask() ([]block, error) {
	body, err := json.Marshal(map[string]any{
		"model": a.model, "max_tokens": 4096, "temperature": a.temperature, "system": "You are a small agent.",
		"tools": json.RawMessage(tools), "messages": a.conversation,
	})
	if err != nil {
		return nil, err
	}
	q, err := http.NewRequest(http.MethodPost, os.Getenv("ANTHROPIC_BASE_URL")+"/v1/messages", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	q.Header.Set("Authorization", "Bearer "+os.Getenv("ANTHROPIC_AUTH_TOKEN"))
	q.Header.Set("Anthropic-Version", "2023-06-01")
	q.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the model answers %s: %s", resp.Status, bytes.TrimSpace(text))
	}
	var answer struct{ Content []block }
	return answer.Content, json.Unmarshal(text, &answer)
}

// act says what the model says, does what it asks for, and returns what came
// of it.
func (a *agent) act(answer []block) (results []block) {
	for _, b := range answer {
		switch b.Type {
		case "text":
			fmt.Println(b.Text)
		case "tool_use":
			out, err := use(b)
			if err != nil {
				out += err.Error()
			}
			results = append(results, block{Type: "tool_result", Call: b.ID, Content: out, Failed: err != nil})
		}
	}
	return results
}

func use(b block) (string, error) {
	var in struct {
		Command string
		Path    string `json:"file_path"`
		Content string
	}
	if err := json.Unmarshal(b.Input, &in); err != nil {
		return "", err
	}
	switch b.Name {
	case "Bash":
		out, err := exec.Command("sh", "-c", in.Command).CombinedOutput()
		return string(out), err
	case "Write":
		return "written", os.WriteFile(in.Path, []byte(in.Content), 0o644)
	}
	return "", errors.New("no such tool")
}
