package workspace

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// section is what a patch says about one file.
type section struct {
	oldPath, newPath string // empty: does not exist on that side
	oldMode, newMode uint32 // 0: not said
	start, end       int64  // bytes of the patch
	target           []byte // of a link that it makes or changes
	created          bool
	content          bool // it says something about the content
}

// path names the section in messages.
func (s section) path() string {
	if s.newPath != "" {
		return s.newPath
	}
	return s.oldPath
}

// Bounds of a patch.
const (
	maxPatchBytes    = 4 << 30
	maxPatchSections = 1 << 20
	maxPatchLine     = 64 << 20 // a line of a text file is a line of the patch
)

// parsePatch reads a patch in git's extended format as strictly as it can be
// written: every byte belongs to a header, a hunk or a binary literal, and what
// is said twice is said the same. git reads patches generously, and a patch
// that two readers understand differently is how one of them is deceived.
func parsePatch(r io.Reader) ([]section, error) {
	p := &patchReader{r: bufio.NewReaderSize(r, 64<<10)}
	if err := p.next(); err != nil {
		return nil, err
	}
	var sections []section
	for !p.end {
		if len(sections) == maxPatchSections {
			return nil, p.errorf("it has more than %d files", maxPatchSections)
		}
		s, err := p.section()
		if err != nil {
			return nil, err
		}
		sections = append(sections, s)
	}
	return sections, nil
}

// patchReader holds the current line of a patch, without its newline.
type patchReader struct {
	r      *bufio.Reader
	line   string
	number int
	at     int64 // where line begins
	after  int64 // where it ends
	end    bool
}

func (p *patchReader) errorf(format string, args ...any) error {
	return mayfly.Errorf(mayfly.Invalid, "the patch is not understood at line %d: %s", p.number, fmt.Sprintf(format, args...)).
		Hint("only patches in git's extended format are taken, as mayfly diff and git diff --binary --full-index write them")
}

// next reads a line; at the end of the patch it sets p.end.
func (p *patchReader) next() error {
	p.at = p.after
	var line []byte
	for {
		part, err := p.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > maxPatchLine {
			return p.errorf("the line is longer than %d bytes", maxPatchLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err == io.EOF && len(line) == 0 {
			p.line, p.end = "", true
			return nil
		}
		if err == io.EOF {
			p.number++
			return p.errorf("it ends in the middle of a line")
		}
		if err != nil {
			return fmt.Errorf("read patch: %w", err)
		}
		break
	}
	p.number++
	p.after += int64(len(line))
	p.line = string(line[:len(line)-1])
	return nil
}

// take returns the rest of the current line and goes to the next one when the
// line begins with word.
func (p *patchReader) take(word string) (rest string, ok bool, err error) {
	if p.end {
		return "", false, nil
	}
	rest, ok = strings.CutPrefix(p.line, word)
	if ok {
		err = p.next()
	}
	return rest, ok, err
}

// header is what a section says before its hunks.
type header struct {
	section
	git        string // the names in "diff --git", as written
	deleted    bool
	renamed    bool
	hasContent bool // an index line is there
}

// section reads one file's part of the patch.
func (p *patchReader) section() (section, error) {
	h := &header{}
	h.start = p.at
	names, ok, err := p.take("diff --git ")
	if err != nil {
		return section{}, err
	}
	if !ok {
		return section{}, p.errorf("expected \"diff --git\"")
	}
	h.git = names
	if err := p.extended(h); err != nil {
		return section{}, err
	}
	if err := p.resolveNames(h); err != nil {
		return section{}, err
	}
	if err := p.content(h); err != nil {
		return section{}, err
	}
	h.end = p.at
	return h.section, nil
}

// extended reads the extended header lines.
func (p *patchReader) extended(h *header) error {
	for !p.end {
		known := false
		for _, e := range []struct {
			word string
			set  func(rest string) error
		}{
			{"old mode ", func(s string) error { return setMode(&h.oldMode, s) }},
			{"new mode ", func(s string) error { return setMode(&h.newMode, s) }},
			{"new file mode ", func(s string) error { h.created = true; return setMode(&h.newMode, s) }},
			{"deleted file mode ", func(s string) error { h.deleted = true; return setMode(&h.oldMode, s) }},
			{"similarity index ", func(s string) error { return percent(s) }},
			{"rename from ", func(s string) error { h.renamed = true; return setName(&h.oldPath, s) }},
			{"rename to ", func(s string) error { h.renamed = true; return setName(&h.newPath, s) }},
			{"index ", func(s string) error { return h.index(s) }},
		} {
			number := p.number
			rest, ok, err := p.take(e.word)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if err := e.set(rest); err != nil {
				p.number = number
				return p.errorf("%v", err)
			}
			known = true
			break
		}
		if !known {
			return nil
		}
	}
	return nil
}

func setMode(to *uint32, s string) error {
	m, err := strconv.ParseUint(s, 8, 32)
	if err != nil || *to != 0 {
		return fmt.Errorf("bad mode %q", s)
	}
	*to = uint32(m)
	return nil
}

func percent(s string) error {
	n, err := strconv.Atoi(strings.TrimSuffix(s, "%"))
	if err != nil || n < 0 || n > 100 {
		return fmt.Errorf("bad percentage %q", s)
	}
	return nil
}

func setName(to *string, s string) error {
	name, rest, err := unquote(s)
	if err != nil || rest != "" || *to != "" || name == "" {
		return fmt.Errorf("bad name %s", strconv.Quote(s))
	}
	*to = name
	return nil
}

// index reads "<old>..<new>[ <mode>]".
func (h *header) index(s string) error {
	ids, mode, hasMode := strings.Cut(s, " ")
	a, b, ok := strings.Cut(ids, "..")
	if !ok || !isHex(a) || !isHex(b) || h.hasContent {
		return fmt.Errorf("bad index line %q", s)
	}
	h.hasContent = true
	if !hasMode {
		return nil
	}
	if err := setMode(&h.oldMode, mode); err != nil {
		return err
	}
	return setMode(&h.newMode, mode)
}

func isHex(s string) bool {
	return len(s) >= 7 && len(s) <= 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// resolveNames finds the names on both sides and checks that the header does
// not contradict itself.
func (p *patchReader) resolveNames(h *header) error {
	if h.created && h.deleted || h.renamed && (h.created || h.deleted) {
		return p.errorf("the file is both new, deleted or renamed")
	}
	if h.renamed {
		if h.oldPath == "" || h.newPath == "" {
			return p.errorf("half a rename")
		}
		if h.git != joinNames(h.oldPath, h.newPath) {
			return p.errorf("the names of the rename are not those of the header")
		}
		return nil
	}
	name, err := commonName(h.git)
	if err != nil {
		return p.errorf("%v", err)
	}
	if !h.created {
		h.oldPath = name
	}
	if !h.deleted {
		h.newPath = name
	}
	return nil
}

// commonName finds the one name in `a/NAME b/NAME`, quoted or not.
func commonName(s string) (string, error) {
	name := ""
	if strings.HasPrefix(s, `"`) {
		first, _, err := unquote(s)
		if err != nil {
			return "", err
		}
		name = strings.TrimPrefix(first, "a/")
	} else if n := len(s) - len("a/ b/"); n > 0 && n%2 == 0 {
		name = s[len("a/") : len("a/")+n/2]
	}
	if name == "" || joinNames(name, name) != s {
		return "", fmt.Errorf("unclear names %q", s)
	}
	return name, nil
}

func joinNames(from, to string) string { return cQuote("a/"+from) + " " + cQuote("b/"+to) }

// content reads what follows the header: nothing, hunks, or binary literals.
func (p *patchReader) content(h *header) error {
	if p.end || strings.HasPrefix(p.line, "diff --git ") {
		return nil
	}
	if !h.hasContent {
		return p.errorf("expected an index line")
	}
	if h.newPath != "" && h.newMode == 0 {
		return p.errorf("the mode of the file is not said")
	}
	h.content = true
	if _, ok, err := p.take("GIT binary patch"); ok || err != nil {
		if err != nil {
			return err
		}
		if h.newMode == modeLink || h.oldMode == modeLink {
			return p.errorf("a link with a binary target")
		}
		return p.binary()
	}
	for _, side := range []struct{ mark, prefix, name string }{{"--- ", "a/", h.oldPath}, {"+++ ", "b/", h.newPath}} {
		got, ok, err := p.take(side.mark)
		if err != nil {
			return err
		}
		if !ok {
			return p.errorf("expected %q", side.mark)
		}
		want := "/dev/null"
		if side.name != "" {
			want = cQuote(side.prefix + side.name)
			if !strings.HasPrefix(want, `"`) && strings.Contains(want, " ") {
				want += "\t"
			}
		}
		if got != want {
			return p.errorf("the name %q is not that of the header", got)
		}
	}
	return p.hunks(h)
}

// hunks reads one or more hunks.
func (p *patchReader) hunks(h *header) error {
	for n := 0; ; n++ {
		rest, ok, err := p.take("@@ -")
		if err != nil {
			return err
		}
		if !ok {
			if n == 0 {
				return p.errorf("expected a hunk")
			}
			return nil
		}
		if n > 0 && h.newMode == modeLink {
			return p.errorf("a link that is changed in parts")
		}
		old, now, err := hunkRanges(rest)
		if err != nil {
			return p.errorf("%v", err)
		}
		if err := p.hunk(h, old, now); err != nil {
			return err
		}
	}
}

// hunkRanges reads "1,2 +3,4 @@ anything" and returns the numbers of lines.
func hunkRanges(s string) (old, now int, err error) {
	ranges, _, ok := strings.Cut(s, " @@")
	a, b, ok2 := strings.Cut(ranges, " +")
	if !ok || !ok2 {
		return 0, 0, fmt.Errorf("bad hunk %q", s)
	}
	count := func(r string) int {
		start, n, given := strings.Cut(r, ",")
		if !given {
			n = "1"
		}
		c, cerr := strconv.ParseUint(n, 10, 31)
		_, serr := strconv.ParseUint(start, 10, 31)
		if cerr != nil || serr != nil {
			err = fmt.Errorf("bad hunk %q", s)
		}
		return int(c)
	}
	old, now = count(a), count(b)
	return old, now, err
}

// hunk reads the lines of a hunk. The target of a link that it makes is kept.
func (p *patchReader) hunk(h *header, old, now int) error {
	for old > 0 || now > 0 {
		if p.end {
			return p.errorf("it ends within a hunk")
		}
		mark := byte(0)
		if p.line != "" {
			mark = p.line[0]
		}
		switch mark {
		case ' ':
			old, now = old-1, now-1
			if h.newMode == modeLink {
				return p.errorf("a link that is changed in parts")
			}
		case '-':
			old--
		case '+':
			now--
			if h.newMode == modeLink && len(h.target) <= maxTarget {
				if len(h.target) > 0 {
					h.target = append(h.target, '\n')
				}
				h.target = append(h.target, p.line[1:]...)
			}
		case '\\':
		default:
			return p.errorf("unexpected line in a hunk")
		}
		if old < 0 || now < 0 {
			return p.errorf("a hunk with more lines than it says")
		}
		if err := p.next(); err != nil {
			return err
		}
	}
	for !p.end && strings.HasPrefix(p.line, `\`) {
		if err := p.next(); err != nil {
			return err
		}
	}
	return nil
}

// binary reads the new content and, where there is one, the old content.
func (p *patchReader) binary() error {
	for n := 0; n < 2; n++ {
		_, literal, err := p.take("literal ")
		if err != nil {
			return err
		}
		if !literal {
			_, delta, err := p.take("delta ")
			if err != nil {
				return err
			}
			if !delta {
				if n == 0 {
					return p.errorf("expected a binary literal")
				}
				return nil
			}
		}
		for !p.end && p.line != "" {
			if !isBase85Line(p.line) {
				return p.errorf("bad line in a binary literal")
			}
			if err := p.next(); err != nil {
				return err
			}
		}
		if p.end {
			return p.errorf("it ends within a binary literal")
		}
		if err := p.next(); err != nil {
			return err
		}
	}
	return nil
}

func isBase85Line(s string) bool {
	n := 0
	switch c := s[0]; {
	case c >= 'A' && c <= 'Z':
		n = int(c-'A') + 1
	case c >= 'a' && c <= 'z':
		n = int(c-'a') + 27
	}
	if n == 0 || len(s) != 1+(n+3)/4*5 {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r > '~' || r == '"' || r == '\'' || r == ',' || r == '.' || r == '/' || r == ':' || r == '[' || r == '\\' || r == ']'
	}) < 0
}

// cQuote writes a name the way git does.
func cQuote(s string) string {
	odd := strings.IndexFunc(s, func(r rune) bool { return r < 0x20 || r >= 0x7f || r == '"' || r == '\\' })
	if odd < 0 {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c >= 7 && c <= 13:
			b.WriteString(`\` + string("abtnvfr"[c-7]))
		case c == '"' || c == '\\':
			b.WriteString(`\` + string(c))
		case c < 0x20 || c >= 0x7f:
			fmt.Fprintf(&b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// unquote reads a name at the beginning of s: a quoted one up to its closing
// quote, or else all of s.
func unquote(s string) (name, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		return s, "", nil
	}
	bad := fmt.Errorf("bad quoted name %s", strconv.Quote(s))
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			i++
			if i == len(s) {
				return "", "", bad
			}
			if k := strings.IndexByte("abtnvfr", s[i]); k >= 0 {
				b.WriteByte(byte(k + 7))
				continue
			}
			if s[i] == '"' || s[i] == '\\' {
				b.WriteByte(s[i])
				continue
			}
			if i+2 >= len(s) {
				return "", "", bad
			}
			v, perr := strconv.ParseUint(s[i:i+3], 8, 8)
			if perr != nil {
				return "", "", bad
			}
			b.WriteByte(byte(v))
			i += 2
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", bad
}
