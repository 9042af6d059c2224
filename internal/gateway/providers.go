package gateway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// Names of the built-in providers, and of the APIs that others speak.
const (
	anthropicName = "anthropic"
	openaiName    = "openai"
	geminiName    = "gemini"
)

// Provider is an upstream: where it is, and the credential for it.
type Provider struct {
	Name    string
	API     string // "anthropic", "openai" or "gemini": decides how the key is sent
	URL     *url.URL
	KeyEnv  string            // variable of the server's environment that holds the key
	KeyFile string            // file that holds the key
	Header  map[string]string // added to every request
}

func isBuiltIn(name string) bool {
	return name == anthropicName || name == openaiName || name == geminiName
}

// builtIn are the providers that need no file.
func builtIn() map[string]Provider {
	return map[string]Provider{
		anthropicName: {Name: anthropicName, API: anthropicName, URL: &url.URL{Scheme: "https", Host: "api.anthropic.com"}, KeyEnv: "ANTHROPIC_API_KEY"},
		openaiName:    {Name: openaiName, API: openaiName, URL: &url.URL{Scheme: "https", Host: "api.openai.com", Path: "/v1"}, KeyEnv: "OPENAI_API_KEY"},
		geminiName:    {Name: geminiName, API: geminiName, URL: &url.URL{Scheme: "https", Host: "generativelanguage.googleapis.com"}, KeyEnv: "GEMINI_API_KEY"},
	}
}

// key returns the provider's credential, "" when it needs none.
func (p Provider) key() (string, error) {
	switch {
	case p.KeyEnv != "":
		if key := strings.TrimSpace(os.Getenv(p.KeyEnv)); key != "" {
			return key, checkKey(key)
		}
		return "", fmt.Errorf("set %s in the environment of the mayfly server, and restart it", p.KeyEnv)
	case p.KeyFile != "":
		b, err := readSmall(p.KeyFile)
		if err != nil {
			return "", fmt.Errorf("the mayfly server cannot read its key file: %w", pathless(err))
		}
		if key := strings.TrimSpace(string(b)); key != "" {
			return key, checkKey(key)
		}
		return "", errors.New("the key file of the mayfly server is empty")
	}
	return "", nil
}

// secrets are the key and those headers that look like credentials, as far as
// they are long enough to be found in a text.
func (p Provider) secrets(key string) []string {
	list := []string{key}
	for name, value := range p.Header {
		if isCredential(name) {
			list = append(list, value, strings.TrimPrefix(value, "Bearer "))
		}
	}
	list = slices.DeleteFunc(list, func(s string) bool { return len(s) < leastKey })
	slices.SortFunc(list, func(a, b string) int { return len(b) - len(a) })
	return list
}

func isCredential(header string) bool {
	header = strings.ToLower(header)
	return slices.ContainsFunc([]string{"key", "auth", "token", "secret", "cookie", "password"}, func(word string) bool {
		return strings.Contains(header, word)
	})
}

// checkKey reports whether a key can be sent in a header.
func checkKey(key string) error {
	if strings.ContainsFunc(key, func(c rune) bool { return c <= ' ' || c >= 0x7f }) {
		return errors.New("the key that the mayfly server has holds spaces, line ends or other characters that no key has")
	}
	return nil
}

// pathless is what is wrong with a file, without saying where it is.
func pathless(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// Providers are the upstreams that the gateway knows: the built-in ones, and
// what a file says. The file is read again when it changed; while it cannot be
// read, what it said before stays.
type Providers struct {
	path string
	log  *slog.Logger

	mu    sync.Mutex // guards the rest
	list  map[string]Provider
	state fileState
}

// fileState tells versions of a file apart.
type fileState struct {
	exists   bool
	size     int64
	modified time.Time
}

func stateOf(path string) fileState {
	info, err := os.Stat(path)
	if err != nil {
		return fileState{}
	}
	return fileState{true, info.Size(), info.ModTime()}
}

// OpenProviders reads the upstreams of a providers file, which need not exist.
// With an empty path there are only the built-in ones.
func OpenProviders(path string, log *slog.Logger) (*Providers, error) {
	p := &Providers{path: path, log: log, list: builtIn()}
	if p.log == nil {
		p.log = slog.Default()
	}
	if path == "" {
		return p, nil
	}
	p.state = stateOf(path)
	list, err := readProviders(path)
	if err != nil {
		return nil, err
	}
	p.list = list
	return p, nil
}

// lookup returns the provider of that name.
func (p *Providers) lookup(name string) (Provider, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refresh()
	found, ok := p.list[name]
	return found, ok
}

// Secrets are the credentials that the providers have now, for redaction. The
// same provider may have several.
func (p *Providers) Secrets() map[string][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refresh()
	all := map[string][]string{}
	for name, provider := range p.list {
		key, err := provider.key()
		if err != nil {
			key = "" // requests are told
		}
		if list := provider.secrets(key); len(list) > 0 {
			all[name] = list
		}
	}
	return all
}

// names lists the providers below /u/, for people.
func (p *Providers) names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.DeleteFunc(slices.Sorted(maps.Keys(p.list)), isBuiltIn)
}

func (p *Providers) refresh() {
	if p.path == "" {
		return
	}
	state := stateOf(p.path)
	if state == p.state {
		return
	}
	p.state = state
	list, err := readProviders(p.path)
	if err != nil {
		p.log.Error("the providers file changed and cannot be used; what it said before stays", "err", err)
		return
	}
	p.list = list
}

func readProviders(path string) (map[string]Provider, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return builtIn(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read providers: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s is open to other users", path).Hint("chmod 600 %s", path)
	}
	b, err := readSmall(path)
	if err != nil {
		return nil, fmt.Errorf("read providers: %w", err)
	}
	return ParseProviders(path, b)
}

// maxFile bounds the providers file and key files, in bytes.
const maxFile = 256 << 10

func readSmall(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return b, err
}
