package graph

import (
	"sync"

	"mayfly.dev/mayfly/internal/modelapi"
)

// parsed is an answer that was read.
type parsed struct {
	answer  modelapi.Answer
	ok      bool  // there was one
	invalid error // it could not be understood
	err     error // it could not be had
}

// ahead is how many answers are read before they are needed.
const ahead = 64

// reader reads answers on a second processor while the graph is made of the
// ones before.
type reader struct {
	parse    map[int]func() parsed // by exchange
	progress chan struct{}
	stop     chan struct{}
	done     sync.WaitGroup
}

func (b *builder) readAhead() *reader {
	r := &reader{parse: map[int]func() parsed{}, stop: make(chan struct{})}
	var order []func() parsed
	for i := range b.in.Exchanges {
		if x := &b.in.Exchanges[i]; x.Step != 0 && b.last[x.Step] == i {
			r.parse[i] = sync.OnceValue(func() parsed { return b.readAnswer(i) })
			order = append(order, r.parse[i])
		}
	}
	r.progress = make(chan struct{}, len(order))
	r.done.Go(func() {
		for i, parse := range order {
			if i >= ahead {
				select {
				case <-r.progress:
				case <-r.stop:
					return
				}
			}
			parse()
		}
	})
	return r
}

// answer is that of an exchange, once.
func (r *reader) answer(i int) parsed {
	r.progress <- struct{}{}
	return r.parse[i]()
}

func (r *reader) close() {
	close(r.stop)
	r.done.Wait()
}

func (b *builder) readAnswer(i int) (p parsed) {
	x := &b.in.Exchanges[i]
	header, body, ok, err := b.content(x.Answer)
	p.ok, p.err = ok, err
	if ok {
		p.answer, p.invalid = modelapi.ParseAnswer(x.API, header, body)
	}
	return p
}
