// Package scriptedmodel is a model API that follows a script instead of
// thinking: it serves the Anthropic Messages, OpenAI Responses and OpenAI Chat
// Completions protocols, so that real agents can be run for real without a
// network and always do the same.
//
// It keeps no state between requests. Where a conversation stands follows from
// the tool results that the request carries, so that retries, restarts and
// parallel agents all get the answer that is theirs.
package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Script is what the model does, a step for each turn of the conversation.
type Script struct {
	Dir   string `json:"dir"` // relative paths of steps start here
	Steps []Step `json:"steps"`
}

// Step is one answer: a remark and at most one action. A step without an
// action ends the conversation.
type Step struct {
	Say    string `json:"say"`
	Write  *File  `json:"write,omitempty"`
	Run    string `json:"run,omitempty"`    // shell command
	Expect string `json:"expect,omitempty"` // regular expression that the action's result must match
}

// File is a file to write.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content"`
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
	for i, step := range s.Steps {
		if _, err := regexp.Compile(step.Expect); err != nil {
			return nil, fmt.Errorf("parse script: step %d: %w", i+1, err)
		}
		if step.Write != nil && step.Run != "" {
			return nil, fmt.Errorf("parse script: step %d both writes and runs", i+1)
		}
	}
	return &s, nil
}

// tool is one that the agent offers.
type tool struct {
	name       string
	freeform   bool // takes text instead of JSON
	properties map[string]property
	required   []string
}

type property struct {
	Type any `json:"type"` // a string or an array of them
}

// turn is what all protocols' requests have in common.
type turn struct {
	tools   []tool
	results []string // of the actions so far, in order
}

// reply is what all protocols' answers have in common.
type reply struct {
	text string
	call *call
}

// call asks the agent to use a tool.
type call struct {
	id        string
	name      string
	freeform  bool
	arguments string // JSON, or text when freeform
}

// next is the answer to a request.
func (s *Script) next(t turn) (reply, error) {
	if len(t.tools) == 0 {
		// Agents ask for titles and summaries beside their work.
		return reply{text: "A scripted conversation"}, nil
	}
	done := len(t.results)
	if done > 0 && done <= len(s.Steps) {
		if e := s.Steps[done-1].Expect; e != "" && !regexp.MustCompile(e).MatchString(t.results[done-1]) {
			return reply{text: fmt.Sprintf("UNEXPECTED: step %d should show %q and shows %q", done, e, t.results[done-1])}, nil
		}
	}
	if done >= len(s.Steps) {
		return reply{text: "The script is over."}, nil
	}
	step := s.Steps[done]
	r := reply{text: step.Say}
	var err error
	switch {
	case step.Write != nil:
		r.call, err = s.write(t.tools, *step.Write)
	case step.Run != "":
		r.call, err = s.run(t.tools, step.Run)
	}
	if r.call != nil {
		r.call.id = fmt.Sprintf("call_%04d", done+1)
	}
	return r, err
}

// Tools that write files and run commands, by the names that agents give them.
var (
	writers = []string{"Write", "write", "write_file", "create_file"}
	shells  = []string{"Bash", "bash", "exec_command", "shell_command", "shell", "local_shell", "run_shell_command"}
)

func find(tools []tool, names []string) *tool {
	for _, name := range names {
		if i := slices.IndexFunc(tools, func(t tool) bool { return t.name == name }); i >= 0 {
			return &tools[i]
		}
	}
	return nil
}

func (s *Script) write(tools []tool, f File) (*call, error) {
	if t := find(tools, writers); t != nil {
		return t.with(map[string]string{
			"file_path": path.Join(s.Dir, f.Path), "filePath": path.Join(s.Dir, f.Path), "path": f.Path,
			"content": f.Content,
		})
	}
	if t := find(tools, []string{"apply_patch"}); t != nil && t.freeform {
		var b strings.Builder
		fmt.Fprintf(&b, "*** Begin Patch\n*** Add File: %s\n", f.Path)
		for line := range strings.Lines(f.Content) {
			b.WriteString("+" + strings.TrimSuffix(line, "\n") + "\n")
		}
		b.WriteString("*** End Patch\n")
		return &call{name: t.name, freeform: true, arguments: b.String()}, nil
	}
	return s.run(tools, fmt.Sprintf("cat > '%s' <<'END OF FILE'\n%sEND OF FILE\n", f.Path, f.Content))
}

func (s *Script) run(tools []tool, command string) (*call, error) {
	t := find(tools, shells)
	if t == nil {
		var names []string
		for _, t := range tools {
			names = append(names, t.name)
		}
		return nil, fmt.Errorf("the agent offers no tool that runs commands, only %s", strings.Join(names, ", "))
	}
	return t.with(map[string]string{"command": command, "cmd": command})
}

// with makes a call from those of the values that the tool knows; what else it
// requires gets a filler.
func (t *tool) with(values map[string]string) (*call, error) {
	arguments := map[string]any{}
	for name, value := range values {
		p, known := t.properties[name]
		switch {
		case !known:
		case p.is("array") && !p.is("string"):
			arguments[name] = []string{"sh", "-c", value}
		default:
			arguments[name] = value
		}
	}
	for _, name := range t.required {
		if _, ok := arguments[name]; !ok {
			arguments[name] = "scripted"
		}
	}
	b, err := json.Marshal(arguments)
	if err != nil {
		return nil, fmt.Errorf("encode arguments of %s: %w", t.name, err)
	}
	return &call{name: t.name, arguments: string(b)}, nil
}

func (p property) is(kind string) bool {
	switch v := p.Type.(type) {
	case string:
		return v == kind
	case []any:
		return slices.Contains(v, any(kind))
	}
	return false
}

// schema is the part of a JSON schema that matters here.
type schema struct {
	Properties map[string]property `json:"properties"`
	Required   []string            `json:"required"`
}
