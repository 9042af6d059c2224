// Package scriptedmodel is a model API that follows a script instead of
// thinking: it serves the Anthropic Messages, OpenAI Responses, OpenAI Chat
// Completions and Gemini protocols, so that real agents can be run for real
// without a network and always do the same.
//
// Where a conversation stands follows from the tool results that the request
// carries, so that retries, restarts and parallel agents all get the answer
// that is theirs, and the same request always the same one. The only state is
// how often a step that a script gives trouble was asked for.
package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
)

// Script is what the model does, a step for each turn of the conversation.
type Script struct {
	Dir   string `json:"dir"` // relative paths of steps start here
	Steps []Step `json:"steps"`
	// Agents are the scripts of subagents, by the name that an action gives
	// when it delegates.
	Agents map[string]Subagent `json:"agents,omitempty"`
}

// Subagent is the script of a conversation that another one began: the one
// whose first messages contain the prompt.
type Subagent struct {
	Prompt string `json:"prompt"`
	Steps  []Step `json:"steps"`
}

// Step is one answer: a remark and its actions. A step without an action ends
// the conversation.
type Step struct {
	Think string `json:"think,omitempty"` // reasoning before the remark
	Say   string `json:"say"`
	Action
	Also    []Action `json:"also,omitempty"` // further actions, at once
	Trouble Trouble  `json:"trouble,omitzero"`
}

// Action is one use of a tool.
type Action struct {
	Write    *File  `json:"write,omitempty"`
	Run      string `json:"run,omitempty"`      // shell command
	Delegate string `json:"delegate,omitempty"` // to the subagent of this name
	Expect   string `json:"expect,omitempty"`   // regular expression that the result must match
}

// File is a file to write.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

// Trouble is what goes wrong with an answer, or slowly.
type Trouble struct {
	Times   int `json:"times,omitempty"`      // only the first so many times that the step is asked for; 0 means always
	Status  int `json:"status,omitempty"`     // HTTP status instead of an answer
	Cut     int `json:"cut,omitempty"`        // break the connection after so many events
	Pause   int `json:"pause_ms,omitempty"`   // milliseconds before each event
	Silence int `json:"silence_ms,omitempty"` // milliseconds with nothing but pings after the first event
	Ping    int `json:"ping_ms,omitempty"`    // milliseconds between these pings; 0 means none
}

// ParseScript reads a script and checks it.
func ParseScript(data []byte) (*Script, error) {
	var s Script
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("parse script: %w", err)
	}
	if len(s.Steps) == 0 {
		return nil, fmt.Errorf("parse script: it has no steps")
	}
	if err := s.check(s.Steps); err != nil {
		return nil, fmt.Errorf("parse script: %w", err)
	}
	for name, a := range s.Agents {
		if a.Prompt == "" {
			return nil, fmt.Errorf("parse script: agent %s has no prompt", name)
		}
		if err := s.check(a.Steps); err != nil {
			return nil, fmt.Errorf("parse script: agent %s: %w", name, err)
		}
	}
	return &s, nil
}

func (s *Script) check(steps []Step) error {
	for i, step := range steps {
		for _, a := range step.actions() {
			if err := s.checkAction(a); err != nil {
				return fmt.Errorf("step %d: %w", i+1, err)
			}
		}
	}
	return nil
}

func (s *Script) checkAction(a Action) error {
	if _, err := regexp.Compile(a.Expect); err != nil {
		return err
	}
	kinds := 0
	for _, is := range []bool{a.Write != nil, a.Run != "", a.Delegate != ""} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return fmt.Errorf("an action must write, run or delegate, and only one of them")
	}
	if _, ok := s.Agents[a.Delegate]; a.Delegate != "" && !ok {
		return fmt.Errorf("no agent %q", a.Delegate)
	}
	return nil
}

// actions are what the step does.
func (s Step) actions() []Action {
	if s.Action == (Action{}) {
		return s.Also
	}
	return append([]Action{s.Action}, s.Also...)
}

// turn is what all protocols' requests have in common.
type turn struct {
	tools   []tool
	opening string          // what was said before the model's first answer
	results []result        // of the actions so far, in order
	format  json.RawMessage // JSON schema of the answer; empty for text
}

// result is what came of a call.
type result struct {
	call string // its id; empty where the protocol has none
	text string
}

// reply is what all protocols' answers have in common.
type reply struct {
	thinking string
	text     string
	calls    []*call
	usage    usage
	trouble  Trouble
	step     string // names the step in the script; empty beside it
}

// usage is what an answer is said to have cost, in tokens.
type usage struct {
	input, cached, output, reasoning int
}

// count makes up numbers that differ between requests and are the same for
// the same one.
func (r *reply) count(request int) {
	written := len(r.text)
	for _, c := range r.calls {
		written += len(c.arguments)
	}
	r.usage = usage{input: request/4 + 1, reasoning: len(r.thinking) / 4}
	r.usage.output = written/4 + 1 + r.usage.reasoning
	if len(r.calls) > 0 {
		r.usage.cached = r.usage.input / 2
	}
}

// conversation is the script of the conversation that the request belongs to,
// and what its calls are named after.
func (s *Script) conversation(t turn) (string, []Step) {
	for name, a := range s.Agents {
		if strings.Contains(t.opening, a.Prompt) {
			return name, a.Steps
		}
	}
	return "call", s.Steps
}

// next is the answer to a request.
func (s *Script) next(t turn) (reply, error) {
	if len(t.tools) == 0 {
		return aside(t.format)
	}
	name, steps := s.conversation(t)
	done := 0 // results before the current step
	for i, step := range steps {
		calls, err := s.calls(t.tools, step, fmt.Sprintf("%s_%04d", name, i+1))
		if err != nil {
			return reply{}, err
		}
		if len(calls) == 0 && len(t.results) > done {
			break
		}
		if len(t.results) < done+len(calls) || len(calls) == 0 {
			return reply{
				thinking: step.Think, text: step.Say, calls: calls, trouble: step.Trouble, step: fmt.Sprintf("%s %d", name, i+1),
			}, nil
		}
		if text := unexpected(step, calls, t.results[done:done+len(calls)]); text != "" {
			return reply{text: fmt.Sprintf("UNEXPECTED: step %d %s", i+1, text)}, nil
		}
		done += len(calls)
	}
	return reply{text: "The script is over."}, nil
}

// unexpected says which result of the step is not as the script expects; it
// is empty when all are.
func unexpected(step Step, calls []*call, results []result) string {
	for i, a := range step.actions() {
		r := results[min(i, len(results)-1)]
		for _, other := range results {
			if i < len(calls) && other.call == calls[i].id {
				r = other
			}
		}
		if a.Expect != "" && !regexp.MustCompile(a.Expect).MatchString(r.text) {
			return fmt.Sprintf("should show %q and shows %q", a.Expect, r.text)
		}
	}
	return ""
}

// aside answers what agents ask beside their work: titles, summaries, which
// model to take.
func aside(format json.RawMessage) (reply, error) {
	if len(format) == 0 {
		return reply{text: "A scripted conversation"}, nil
	}
	var p property
	if err := json.Unmarshal(format, &p); err != nil {
		return reply{}, fmt.Errorf("parse the schema of the answer: %w", err)
	}
	b, err := json.Marshal(p.value(0))
	return reply{text: string(b)}, err
}
