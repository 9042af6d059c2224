package redact

import "regexp"

var secretHeader = regexp.MustCompile(`(?i)^(?:(?:proxy-)?authorization|(?:set-)?cookie2?)$|api-?key|token(?:$|-)|secret|credential|password|-auth(?:$|-)|session-key`)

// limits are headers of upstreams that count tokens and hold no secret.
var limits = regexp.MustCompile(`(?i)rate-?limit|tokens?-(?:remaining|limit|reset|used)|max-tokens`)

// HeaderMarker takes the place of values that are secret by their name.
const HeaderMarker = "[redacted:header]"

// Header returns a copy of h without what must not be written, and whether
// there was any.
func (r *Redactor) Header(h map[string][]string) (out map[string][]string, changed bool) {
	out = make(map[string][]string, len(h))
	for name, values := range h {
		safe := r.Text(name)
		list := make([]string, len(values))
		for i, v := range values {
			if v != "" && secretHeader.MatchString(name) && !limits.MatchString(name) {
				list[i] = HeaderMarker
			} else {
				list[i] = r.Text(v)
			}
			changed = changed || list[i] != v
		}
		out[safe] = append(out[safe], list...)
		changed = changed || safe != name
	}
	return out, changed
}
