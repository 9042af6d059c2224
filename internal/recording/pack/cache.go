package pack

import "sync"

// pieces are the pieces of one group, unpacked.
type pieces struct {
	first uint64
	ends  []int
	data  []byte
}

func (p *pieces) has(number uint64) bool {
	return number >= p.first && number-p.first < uint64(len(p.ends))
}

func (p *pieces) piece(number uint64) []byte {
	i := number - p.first
	start := 0
	if i > 0 {
		start = p.ends[i-1]
	}
	return p.data[start:p.ends[i]:p.ends[i]]
}

// cache keeps the groups that were used last: those of the newer half, and
// those of the older half until the newer one is full.
type cache struct {
	limit int // bytes of each half

	mu       sync.Mutex // guards what follows
	new, old map[uint64]*pieces
	size     int // bytes of new
}

func (c *cache) get(first uint64) *pieces {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.new[first]; g != nil {
		return g
	}
	if g := c.old[first]; g != nil {
		c.add(first, g)
		return g
	}
	return nil
}

func (c *cache) put(first uint64, g *pieces) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(first, g)
}

func (c *cache) add(first uint64, g *pieces) {
	if c.new == nil || c.size > c.limit {
		c.new, c.old, c.size = map[uint64]*pieces{}, c.new, 0
	}
	c.new[first] = g
	c.size += len(g.data)
}
