package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// Difference is one thing that is not as the lock says.
type Difference struct {
	What string `json:"what"` // such as "lockfile go.sum"
	Was  string `json:"was"`  // in the lock; empty when the lock lacks it
	Is   string `json:"is"`   // now; empty when it is gone
	Fix  string `json:"fix"`
}

// String is a sentence.
func (d Difference) String() string {
	switch {
	case d.Was == "":
		return fmt.Sprintf("%s is new: %s (%s)", d.What, d.Is, d.Fix)
	case d.Is == "":
		return fmt.Sprintf("%s is gone: it was %s (%s)", d.What, d.Was, d.Fix)
	}
	return fmt.Sprintf("%s was %s and is %s (%s)", d.What, d.Was, d.Is, d.Fix)
}

// Drift lists what of a new lock differs from the old one, in a fixed order.
// Two things are not drift: the commit, as long as the files are the same,
// since the commit that adds a lock is never the one that the lock names; and
// the counts of files, which follow from the workspace's digest.
func Drift(old, now mayfly.Lock) []Difference {
	var all []Difference
	add := func(what, was, is, fix string) {
		if was != is {
			all = append(all, Difference{what, was, is, fix})
		}
	}
	const manifestFix = "undo the change in " + File + ", or accept it with mayfly lock"
	add("the format of the lock", "version "+strconv.Itoa(old.Version), "version "+strconv.Itoa(now.Version), "use the mayfly that wrote it, or write it anew with mayfly lock")
	add("the name", old.Name, now.Name, manifestFix)
	all = append(all, baseDrift(old.Base, now.Base)...)
	all = append(all, mapDrift("lockfile ", old.Lockfiles, now.Lockfiles, short, "restore the file, or accept it with mayfly lock")...)
	if old.Workspace.Digest != now.Workspace.Digest {
		add("the workspace", describe(old.Workspace), describe(now.Workspace), "check out what was locked, leave changes out with workspace.uncommitted, or accept it with mayfly lock")
	}
	add("workspace.depth", strconv.Itoa(old.Workspace.Depth), strconv.Itoa(now.Workspace.Depth), manifestFix)
	for i := range max(len(old.Setup), len(now.Setup)) {
		add(fmt.Sprintf("setup[%d]", i), at(old.Setup, i), at(now.Setup, i), manifestFix)
	}
	all = append(all, mapDrift("the variable ", old.Env, now.Env, quoted, manifestFix)...)
	add("the seed", strconv.FormatUint(old.Seed, 10), strconv.FormatUint(now.Seed, 10), manifestFix)
	add("SOURCE_DATE_EPOCH", strconv.FormatInt(old.Epoch, 10), strconv.FormatInt(now.Epoch, 10), "accept it with mayfly lock")
	add("limits.cpu", fmt.Sprint(old.Limits.CPU), fmt.Sprint(now.Limits.CPU), manifestFix)
	add("limits.memory", FormatSize(old.Limits.Memory), FormatSize(now.Limits.Memory), manifestFix)
	add("limits.pids", fmt.Sprint(old.Limits.PIDs), fmt.Sprint(now.Limits.PIDs), manifestFix)
	add("limits.disk", FormatSize(old.Limits.Disk), FormatSize(now.Limits.Disk), manifestFix)
	add("limits.output", FormatSize(old.Limits.Output), FormatSize(now.Limits.Output), manifestFix)
	add("ttl", FormatDuration(old.TTL), FormatDuration(now.TTL), manifestFix)
	add("idle", FormatDuration(old.Idle), FormatDuration(now.Idle), manifestFix)
	add("nested_sandboxes", fmt.Sprint(old.Nested), fmt.Sprint(now.Nested), manifestFix)
	was, is := modelOf(old), modelOf(now)
	add("the model", was, is, "name the version in "+File+", such as model: NAME@1, or accept it with mayfly lock")
	add("recording.exact", exactOf(old), exactOf(now), manifestFix)
	all = append(all, mapDrift("the service ", describeServices(old), describeServices(now), quoted, "undo the change in "+File+" or in the files that it names, or accept it with mayfly lock")...)
	return all
}

// describeServices has all that is pinned of services.
func describeServices(l mayfly.Lock) map[string]string {
	described := map[string]string{}
	for _, s := range l.Services {
		text, err := json.Marshal(s)
		var fields any
		if err == nil {
			err = json.Unmarshal(text, &fields)
		}
		if err != nil {
			panic(err) // strings and numbers
		}
		flatten(described, s.Name, fields)
	}
	return described
}

// flatten describes every value in a tree by the path to it.
func flatten(into map[string]string, path string, value any) {
	if fields, ok := value.(map[string]any); ok {
		for name, v := range fields {
			flatten(into, path+"."+name, v)
		}
		return
	}
	into[path] = fmt.Sprint(value)
}

func modelOf(l mayfly.Lock) string {
	if l.Model == nil {
		return ""
	}
	return l.Model.Ref + " " + short(l.Model.Digest)
}

func exactOf(l mayfly.Lock) string { return string(cmp.Or(l.Exact, mayfly.ExactEncrypted)) }

func baseDrift(old, now mayfly.LockedBase) []Difference {
	name := func(b mayfly.LockedBase) string {
		return strings.TrimSpace(b.Kind + " " + b.Reference)
	}
	switch {
	case name(old) != name(now):
		return []Difference{{"the base", name(old), name(now), "undo the change in " + File + ", or accept it with mayfly lock"}}
	case old.Digest == now.Digest:
		return nil
	case now.Kind == string(HostBase):
		return []Difference{{"the set of packages installed on this machine", short(old.Digest), short(now.Digest), "install the same packages, or accept it with mayfly lock"}}
	}
	return []Difference{{"the image " + now.Reference, short(old.Digest), short(now.Digest), "name the image by its digest, or accept it with mayfly lock"}}
}

func mapDrift(what string, old, now map[string]string, show func(string) string, fix string) []Difference {
	var all []Difference
	for _, k := range keysOf(old, now) {
		was, wasThere := old[k]
		is, isThere := now[k]
		if was == is && wasThere == isThere {
			continue
		}
		d := Difference{What: what + k, Fix: fix}
		if wasThere {
			d.Was = show(was)
		}
		if isThere {
			d.Is = show(is)
		}
		all = append(all, d)
	}
	return all
}

func describe(w mayfly.LockedWorkspace) string {
	s := fmt.Sprintf("%s with %d files", short(w.Digest), w.Files)
	if w.Commit != "" {
		s += " at commit " + w.Commit[:min(12, len(w.Commit))]
	}
	if w.Uncommitted > 0 {
		s += fmt.Sprintf(", %d of them not committed", w.Uncommitted)
	}
	return s
}

func at(list []string, i int) string {
	if i < len(list) {
		return quoted(list[i])
	}
	return ""
}

// quoted shows a value on one line, shortened where it is long.
func quoted(s string) string {
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return strconv.Quote(s)
}

// short is enough of a digest to tell it from another.
func short(digest string) string {
	return digest[:min(len("sha256:")+12, len(digest))]
}

// DriftError is nil without differences, and otherwise an error of kind
// mayfly.Drift that lists them, one a line.
func DriftError(differences []Difference) error {
	if len(differences) == 0 {
		return nil
	}
	lines := slices.Collect(func(yield func(string) bool) {
		for _, d := range differences {
			if !yield("  " + d.String()) {
				return
			}
		}
	})
	return mayfly.Errorf(mayfly.Drift, "%s does not match:\n%s", LockFile, strings.Join(lines, "\n")).
		Hint("accept all of it with: mayfly lock")
}
