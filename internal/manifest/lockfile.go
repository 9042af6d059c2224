package manifest

import (
	"path"
	"slices"
	"strings"
)

// lockfileNames are the files by which package managers pin what they
// install. requirements.txt is one of them because it is the only one that
// plain pip has.
var lockfileNames = []string{
	"bun.lock", "bun.lockb", "Cargo.lock", "composer.lock", "conan.lock", "deno.lock",
	"flake.lock", "Gemfile.lock", "go.sum", "go.work.sum", "gradle.lockfile", "mix.lock",
	"npm-shrinkwrap.json", "package-lock.json", "Package.resolved", "packages.lock.json",
	"pdm.lock", "Pipfile.lock", "pixi.lock", "pnpm-lock.yaml", "poetry.lock", "pubspec.lock",
	"pylock.toml", "requirements.txt", "uv.lock", "yarn.lock",
}

// installed are directories whose lockfiles belong to somebody else.
var installed = []string{".git", "node_modules", "vendor", ".venv", "venv"}

// IsLockfile reports whether the file at a slash-separated path relative to
// the workspace is one that the lock pins. Without patterns in the manifest
// these are the well-known names anywhere outside installed dependencies. A
// pattern without a slash matches names in every directory, one with a slash
// whole paths; * and ? match within one part of a path, ** any number of
// parts.
func (m Manifest) IsLockfile(name string) bool {
	segments := strings.Split(name, "/")
	base := segments[len(segments)-1]
	if m.Lockfiles == nil {
		return slices.Contains(lockfileNames, base) &&
			!slices.ContainsFunc(segments, func(s string) bool { return slices.Contains(installed, s) })
	}
	return slices.ContainsFunc(m.Lockfiles, func(pattern string) bool {
		if !strings.Contains(pattern, "/") {
			return matchPath([]string{pattern}, []string{base})
		}
		return matchPath(strings.Split(pattern, "/"), segments)
	})
}

// matchPath matches part by part. It takes time proportional to the product
// of the lengths: reached[j] says that the pattern so far matches the first j
// parts.
func matchPath(pattern, segments []string) bool {
	reached := make([]bool, len(segments)+1)
	reached[0] = true
	for _, p := range pattern {
		next := make([]bool, len(segments)+1)
		for j := range reached {
			switch {
			case p == "**":
				next[j] = reached[j] || j > 0 && next[j-1]
			case j > 0 && reached[j-1]:
				next[j], _ = path.Match(p, segments[j-1])
			}
		}
		reached = next
	}
	return reached[len(segments)]
}
