package main

import (
	"fmt"
	"os"
	"sync"
	"time"

	"mayfly.dev/mayfly/internal/terminal"
)

// progress shows on a terminal that long work goes on and how many bytes have
// passed. Elsewhere it is silent, and so it is about work that is short.
type progress struct {
	what  string
	shown bool // standard error is a terminal

	mu    sync.Mutex // guards the rest
	bytes int64
	start time.Time
	last  time.Time
	line  bool // a line of it stands there
}

const (
	progressDelay = 300 * time.Millisecond
	progressEvery = 100 * time.Millisecond
)

const eraseLine = "\r\x1b[K"

func newProgress(what string) *progress {
	return &progress{what: what, shown: onTerminal(os.Stderr), start: time.Now()}
}

func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += int64(len(b))
	now := time.Now()
	if p.shown && now.Sub(p.start) > progressDelay && now.Sub(p.last) > progressEvery {
		p.last, p.line = now, true
		fmt.Fprintf(os.Stderr, eraseLine+"mayfly: %s, %s", p.what, bytesText(p.bytes))
	}
	return len(b), nil
}

// print writes something else without leaving half a line.
func (p *progress) print(text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
	fmt.Fprint(os.Stderr, text)
}

func (p *progress) done() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *progress) erase() {
	if p.line {
		fmt.Fprint(os.Stderr, eraseLine)
		p.line = false
	}
}

// setupLog takes the output of setup commands: a person sees it as it comes,
// everybody else the end of it when setup fails.
type setupLog struct {
	progress *progress
	filter   *terminal.Filter
	tail     []byte
}

const setupTail = 16 << 10

func (l *setupLog) Write(b []byte) (int, error) {
	if l.progress.shown {
		if l.filter == nil {
			l.filter = terminal.NewFilter(os.Stderr)
		}
		l.progress.print("")
		return l.filter.Write(b)
	}
	l.tail = append(l.tail, b...)
	if over := len(l.tail) - setupTail; over > setupTail {
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	return len(b), nil
}

// finish ends what a person saw, or shows what was held back of a failure.
func (l *setupLog) finish(err error) {
	switch {
	case l.filter != nil:
		l.filter.Close()
	case err != nil:
		os.Stderr.Write(l.tail)
	}
}
