package workspace

import (
	"fmt"
	"strings"
	"unicode"

	"mayfly.dev/mayfly"
)

// guard refuses sections that would reach out of the work tree or into git's
// own files, now or when somebody checks the result out on another system.
func guard(sections []section) error {
	for _, s := range sections {
		for _, p := range []string{s.oldPath, s.newPath} {
			if p == "" {
				continue
			}
			if why := badPath(p); why != "" {
				return refuse(p, why)
			}
		}
		for _, m := range []uint32{s.oldMode, s.newMode} {
			if m == modeSubmodule {
				return refuse(s.path(), "is a submodule")
			}
			if m != 0 && m != modeFile && m != modeExecutable && m != modeLink {
				return refuse(s.path(), fmt.Sprintf("has the mode %o", m))
			}
		}
		if s.newMode == modeLink && s.newPath != "" && (s.content || s.created) {
			if why := badTarget(s.newPath, string(s.target)); why != "" {
				return refuse(s.newPath, why)
			}
		}
		if !s.content && s.newMode == modeLink && s.oldMode != modeLink {
			return refuse(s.newPath, "becomes a link")
		}
	}
	return nil
}

func refuse(path, why string) error {
	return mayfly.Errorf(mayfly.Forbidden, "the change is refused: %s %s", visible(path), why).
		Hint("look at it with: mayfly diff; take the rest by removing that path inside the environment")
}

// badPath says why a path must not come out of an environment; empty when it
// may.
func badPath(p string) string {
	if strings.HasPrefix(p, "/") || strings.IndexByte(p, 0) >= 0 {
		return "is not inside the workspace"
	}
	if len(p) > maxTarget {
		return "is longer than a path can be"
	}
	// To Windows, a backslash separates, too.
	for part := range strings.FieldsFuncSeq(strings.ReplaceAll(p, "//", "/\x00/"), func(r rune) bool { return r == '/' || r == '\\' }) {
		switch {
		case part == "\x00" || part == "." || part == "..":
			return "is not a plain path inside the workspace"
		case isDotGit(part):
			return "lies in git's own directory"
		}
	}
	if strings.HasSuffix(p, "/") {
		return "is not a plain path inside the workspace"
	}
	return ""
}

// isDotGit knows the names that some file system takes for .git: in any case,
// with characters that HFS+ ignores, with trailing dots and spaces or a stream
// name as NTFS drops them, and the short name that NTFS makes of it.
func isDotGit(part string) bool {
	part = strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Cf, r) || r == '\u034f' {
			return -1
		}
		return unicode.ToLower(r)
	}, part)
	part, _, _ = strings.Cut(part, ":")
	part = strings.TrimRight(part, ". ")
	if part == ".git" {
		return true
	}
	number, ok := strings.CutPrefix(part, "git~")
	return ok && number != "" && strings.Trim(number, "0123456789") == ""
}

// badTarget says why a link must not come out of an environment.
func badTarget(name, target string) string {
	switch {
	case target == "":
		return "is a link without a target"
	case len(target) > maxTarget:
		return "is a link with a target longer than a path can be"
	case strings.HasPrefix(target, "/"), strings.Contains(target, `\`), strings.Contains(target, ":"):
		return fmt.Sprintf("is a link to %s, which is not inside the workspace", visible(target))
	}
	depth := strings.Count(name, "/")
	for part := range strings.SplitSeq(target, "/") {
		switch {
		case part == "..":
			if depth--; depth < 0 {
				return fmt.Sprintf("is a link to %s, which is not inside the workspace", visible(target))
			}
		case part != "" && part != ".":
			depth++
		}
		if isDotGit(part) {
			return "is a link into git's own directory"
		}
	}
	return ""
}
