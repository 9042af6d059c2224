// Package modelapi reads and normalises what agents and models say to each
// other: Anthropic Messages, OpenAI Responses and Chat Completions, Gemini.
package modelapi

import (
	"net/http"
	"strings"

	"mayfly.dev/mayfly"
)

// Names of the APIs, as in mayfly.Exchange.
const (
	Messages      = "anthropic.messages"
	MessagesCount = "anthropic.count_tokens"
	Responses     = "openai.responses"
	Compact       = "openai.compact" // history in, summarised history out
	Chat          = "openai.chat"
	Generate      = "gemini.generate"
	Stream        = "gemini.stream"
	GeminiCount   = "gemini.count_tokens"
	Other         = "other" // known, and not a question to a model
)

// Request is what an agent asks a model.
type Request struct {
	Model      string // "" where the path has it: see PathModel
	Stream     bool
	Session    string // as the agent calls it; "" when the wire does not say
	Agent      string // subagent; "" for the main agent
	AgentName  string // what kind of subagent: "Explore", "review"
	Parent     string // what the wire calls the agent that started this one
	Side       string // "" for a turn of the conversation, else "count", "title", "routing", "quota", …
	Compaction bool   // asks for a summary that will replace the conversation
	Compacted  bool   // brings a summary that replaced it
	Previous   string // id of the answer that the upstream remembers and this request continues
	Parameters mayfly.Parameters
	System     string // instructions that stand outside the turns
	Tools      []Tool
	// SystemDigest and ToolsDigest are "sha256:…" of the normalised system
	// prompt and tool set; "" when there is none.
	SystemDigest string
	ToolsDigest  string
	Turns        []Turn
}

// Tool is a tool that the model may call.
type Tool struct {
	Name string
	Kind string // "function", "custom", or the upstream's own: "web_search", …
}

// Turn is one entry of a conversation, as the wire divides it.
type Turn struct {
	Role   string // "user", "assistant", "system", "tool"
	Blocks []Block
}

// BlockKind says what a block holds.
type BlockKind string

const (
	TextBlock     BlockKind = "text"
	ThinkingBlock BlockKind = "thinking"
	CallBlock     BlockKind = "call"
	ResultBlock   BlockKind = "result"
	SummaryBlock  BlockKind = "summary" // stands for turns that were left out
	MediaBlock    BlockKind = "media"   // Text names what it is; the bytes are left out

	triggerBlock BlockKind = "trigger" // asks for compaction
)

// Block is one piece of a turn.
type Block struct {
	Kind    BlockKind
	Text    string // of text, thinking, summary and result
	ID      string // of a call and its result; "" where the API has none
	Name    string // of a call's tool; of a result's where the API says it
	Input   string // of a call: JSON as written, or what a custom tool takes
	Remote  bool   // of a call: the upstream runs it, no result is sent back
	Failed  bool   // of a result
	Refused bool   // of a result: a person or the agent's program did not allow the call
}

// Answer is what a model answers.
type Answer struct {
	ID       string
	Model    string // as the upstream names it
	Blocks   []Block
	Stop     string // why the model stopped, in the API's words
	Usage    mayfly.TokenUsage
	Error    string // what the upstream said went wrong
	Complete bool   // false when it was cut off
}

// routes are the paths that are known, by how they end.
var routes = []struct{ method, suffix, api string }{
	{http.MethodPost, "/messages", Messages},
	{http.MethodPost, "/messages/count_tokens", MessagesCount},
	{http.MethodPost, "/responses", Responses},
	{http.MethodPost, "/responses/compact", Compact},
	{http.MethodPost, "/chat/completions", Chat},
	{http.MethodPost, ":generateContent", Generate},
	{http.MethodPost, ":streamGenerateContent", Stream},
	{http.MethodPost, ":countTokens", GeminiCount},
	{http.MethodPost, "/embeddings", Other},
	{http.MethodPost, ":embedContent", Other},
	{http.MethodPost, ":batchEmbedContents", Other},
	{http.MethodGet, "/models", Other},
	{http.MethodHead, "/api/hello", Other},
	{http.MethodGet, "/api/hello", Other},
}

// Identify names the API that a request speaks, by its method and the path
// that the upstream gets, with or without a query. It is false for paths that
// no API has.
func Identify(method, path string) (api string, ok bool) {
	path, _, _ = strings.Cut(path, "?")
	path = strings.TrimSuffix(path, "/")
	for _, r := range routes {
		if r.method == method && strings.HasSuffix(path, r.suffix) {
			return r.api, true
		}
	}
	if method == http.MethodGet && strings.Contains(path, "/models/") {
		return Other, true
	}
	return "", false
}

// Paths lists the endings of the paths that Identify knows, for people.
func Paths() []string {
	var list []string
	for _, r := range routes {
		list = append(list, r.method+" …"+r.suffix)
	}
	return list
}

// PathModel is the model that a path names, as Gemini's do; "" for others.
func PathModel(path string) string {
	path, _, _ = strings.Cut(path, "?")
	_, name, ok := strings.Cut(path, "/models/")
	if !ok {
		return ""
	}
	name, _, _ = strings.Cut(name, ":")
	return name
}
