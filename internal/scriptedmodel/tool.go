package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"
)

// tool is one that the agent offers.
type tool struct {
	name      string
	namespace string // of the Responses API; usually empty
	freeform  bool   // takes text instead of JSON
	schema    property
}

// property is the part of a JSON schema that matters here.
type property struct {
	Type       any                 `json:"type"` // a string or an array of them
	Enum       []any               `json:"enum"`
	Properties map[string]property `json:"properties"`
	Required   []string            `json:"required"`
}

// call asks the agent to use a tool.
type call struct {
	id        string
	name      string
	namespace string
	freeform  bool
	arguments string // JSON, or text when freeform
}

// Tools that write files, run commands and start subagents, by the names that
// agents give them.
var (
	writers    = []string{"Write", "write", "write_file", "create_file"}
	shells     = []string{"Bash", "bash", "exec_command", "shell_command", "shell", "local_shell", "run_shell_command"}
	delegators = []string{"Agent", "Task", "task"}
)

func find(tools []tool, names []string) *tool {
	for _, name := range names {
		if i := slices.IndexFunc(tools, func(t tool) bool { return t.name == name }); i >= 0 {
			return &tools[i]
		}
	}
	return nil
}

// calls are the calls of a step. An agent that takes programs instead of calls
// gets one for the whole step.
func (s *Script) calls(tools []tool, step Step, id string) ([]*call, error) {
	actions := step.actions()
	if t := find(tools, []string{"exec"}); t != nil && t.freeform && find(tools, shells) == nil && len(actions) > 0 {
		c := t.call(program(actions))
		c.id = id + "_1"
		return []*call{c}, nil
	}
	var all []*call
	for i, a := range actions {
		c, err := s.call(tools, a)
		if err != nil {
			return nil, err
		}
		// No id begins with another one: agents make ids of their own that way.
		c.id = fmt.Sprintf("%s_%d", id, i+1)
		all = append(all, c)
	}
	return all, nil
}

func (s *Script) call(tools []tool, a Action) (*call, error) {
	switch {
	case a.Write != nil:
		return s.write(tools, *a.Write)
	case a.Delegate != "":
		return use(tools, delegators, "starts subagents", map[string]any{
			"description": a.Delegate, "prompt": s.Agents[a.Delegate].Prompt, "subagent_type": "general-purpose", "run_in_background": false,
		})
	}
	return run(tools, a.Run)
}

// program is JavaScript for Codex, which performs the actions one after
// another.
func program(actions []Action) string {
	var b strings.Builder
	for i, a := range actions {
		command := a.Run
		if a.Write != nil {
			command = a.Write.command()
		}
		quoted, _ := json.Marshal(command) // a string always has a form in JSON
		fmt.Fprintf(&b, "const r%d = await tools.exec_command({cmd: %s});\ntext(r%d.output);\n", i, quoted, i)
	}
	return b.String()
}

func (s *Script) write(tools []tool, f File) (*call, error) {
	if t := find(tools, writers); t != nil {
		return t.with(map[string]any{
			"file_path": path.Join(s.Dir, f.Path), "filePath": path.Join(s.Dir, f.Path), "path": f.Path,
			"content": f.Content,
		})
	}
	if t := find(tools, []string{"apply_patch"}); t != nil && t.freeform {
		return t.call(f.patch()), nil
	}
	return run(tools, f.command())
}

// patch adds the file, in the format of Codex.
func (f File) patch() string {
	var b strings.Builder
	fmt.Fprintf(&b, "*** Begin Patch\n*** Add File: %s\n", f.Path)
	for line := range strings.Lines(f.Content) {
		b.WriteString("+" + strings.TrimSuffix(line, "\n") + "\n")
	}
	b.WriteString("*** End Patch\n")
	return b.String()
}

// command writes the file from a shell.
func (f File) command() string {
	return fmt.Sprintf("cat > '%s' <<'END OF FILE'\n%sEND OF FILE\n", f.Path, f.Content)
}

func run(tools []tool, command string) (*call, error) {
	return use(tools, shells, "runs commands", map[string]any{"command": command, "cmd": command})
}

func use(tools []tool, names []string, what string, values map[string]any) (*call, error) {
	if t := find(tools, names); t != nil {
		return t.with(values)
	}
	var offered []string
	for _, t := range tools {
		offered = append(offered, t.name)
	}
	return nil, fmt.Errorf("the agent offers no tool that %s, only %s", what, strings.Join(offered, ", "))
}

// with makes a call from those of the values that the tool knows; what else it
// requires gets a filler.
func (t *tool) with(values map[string]any) (*call, error) {
	arguments := map[string]any{}
	for name, value := range values {
		p, known := t.schema.Properties[name]
		switch {
		case !known:
		case p.is("array") && !p.is("string"):
			arguments[name] = []any{"sh", "-c", value}
		default:
			arguments[name] = value
		}
	}
	for _, name := range t.schema.Required {
		if _, ok := arguments[name]; !ok {
			arguments[name] = t.schema.Properties[name].value(0)
		}
	}
	b, err := json.Marshal(arguments)
	if err != nil {
		return nil, fmt.Errorf("encode arguments of %s: %w", t.name, err)
	}
	return t.call(string(b)), nil
}

func (t *tool) call(arguments string) *call {
	return &call{name: t.name, namespace: t.namespace, freeform: t.freeform, arguments: arguments}
}

// is reports whether a value may have the type. Gemini writes types in
// capitals.
func (p property) is(kind string) bool {
	switch v := p.Type.(type) {
	case string:
		return strings.EqualFold(v, kind)
	case []any:
		return slices.Contains(v, any(kind))
	}
	return false
}

// maxDepth bounds how deep a filler goes into a schema.
const maxDepth = 10

// value is something that fits the schema.
func (p property) value(depth int) any {
	switch {
	case len(p.Enum) > 0:
		return p.Enum[0]
	case p.is("object") && depth < maxDepth:
		o := object{}
		for _, name := range p.Required {
			o[name] = p.Properties[name].value(depth + 1)
		}
		return o
	case p.is("array"):
		return []any{}
	case p.is("boolean"):
		return true
	case p.is("integer"), p.is("number"):
		return 1
	}
	return "scripted"
}
