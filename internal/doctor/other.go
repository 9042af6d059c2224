//go:build !linux

package doctor

import (
	"context"
	"runtime"
)

var probes = []probe{{"kernel", "everything", true, func(context.Context, string) Finding {
	return missing("", "this is %s; mayfly's server runs on Linux", runtime.GOOS)
}}}
