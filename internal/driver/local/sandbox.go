package local

import (
	"context"
	"maps"
	"slices"
	"strconv"

	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/sandbox"
)

// sandboxSpec says how the sandbox of an environment is put together.
func (d *Driver) sandboxSpec(ctx context.Context, h driver.Handle, s driver.Spec) (sandbox.Spec, error) {
	t, err := d.template(s.Template)
	if err != nil {
		return sandbox.Spec{}, err
	}
	lower, err := d.layers(ctx, t, s.Template)
	if err != nil {
		return sandbox.Spec{}, err
	}
	return d.assemble(h, t, lower, s), nil
}

func (d *Driver) assemble(h driver.Handle, t description, lower []string, s driver.Spec) sandbox.Spec {
	live := d.pool.Live(h.Environment)
	return sandbox.Spec{
		Environment: h.Environment,
		Host:        d.pool.Host(h.Environment),
		Lower:       lower,
		Upper:       live.Upper,
		Work:        live.Work,
		DB:          live.DB,
		Binds:       t.Binds,
		Env:         t.variables(s.Env),
		Limits:      s.Limits,
		UIDBase:     h.UIDBase,
		Nested:      t.Lock.Nested,
	}
}

// systemPath is where programs are looked for unless an image says otherwise.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// variables are the environment variables of every process: the same in all
// environments of a template, so that runs compare.
func (t description) variables(own map[string]string) []string {
	vars := map[string]string{
		"PATH":  systemPath,
		"SHELL": "/bin/sh",
		"LANG":  "C.UTF-8",
	}
	maps.Copy(vars, t.ImageEnv)
	maps.Copy(vars, map[string]string{
		"HOME":              sandbox.Home,
		"USER":              sandbox.User,
		"LOGNAME":           sandbox.User,
		"TZ":                "UTC",
		"SOURCE_DATE_EPOCH": strconv.FormatInt(t.Lock.Epoch, 10),
		"PYTHONHASHSEED":    strconv.FormatUint(t.Lock.Seed%(1<<32), 10),
		"MAYFLY_SEED":       strconv.FormatUint(t.Lock.Seed, 10),
	})
	maps.Copy(vars, t.Lock.Env)
	maps.Copy(vars, own)
	return list(vars)
}

// list sorts variables into the form that processes take them in.
func list(vars map[string]string) []string {
	out := make([]string, 0, len(vars))
	for _, k := range slices.Sorted(maps.Keys(vars)) {
		out = append(out, k+"="+vars[k])
	}
	return out
}
