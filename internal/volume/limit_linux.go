package volume

import "context"

// envLimiter is a store that can bound what the trees of one environment,
// whose directory it gets, occupy together.
type envLimiter interface {
	createGroup(envDir string) error
	limit(envDir string, bytes int64) error // 0: none
	limitOf(envDir string) (int64, error)
	used(envDir string) (int64, error)
}

// limitedPool is a pool that is a Limiter too.
type limitedPool struct {
	*pool
	limiter envLimiter
}

func (p limitedPool) SetLimit(ctx context.Context, env string, bytes int64) error {
	return p.do(ctx, "limit volume", []string{env}, func() error {
		if err := p.wantVolume(env); err != nil {
			return err
		}
		return p.limiter.limit(p.env(env), bytes)
	})
}

func (p limitedPool) Used(ctx context.Context, env string) (bytes int64, err error) {
	err = p.do(ctx, "measure volume", []string{env}, func() error {
		if err := p.wantVolume(env); err != nil {
			return err
		}
		bytes, err = p.limiter.used(p.env(env))
		return err
	})
	return bytes, err
}
