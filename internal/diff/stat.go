package diff

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// WriteStat writes one line per changed file with the number of changed lines
// and a bar, then a summary, no wider than width columns (at least 40). Names
// are quoted, so that none of their bytes acts on a terminal.
func (d *Diff) WriteStat(w io.Writer, width int, color bool) error {
	s := &stat{w: bufio.NewWriter(w), width: max(width, 40), color: color}
	s.measure(d.changes)
	for _, c := range d.changes {
		if !c.old.isDir() && !c.new.isDir() {
			s.line(c)
		}
	}
	s.summary(d.changes)
	return s.w.Flush()
}

type stat struct {
	w                  *bufio.Writer
	width              int
	color              bool
	name, number, most int // columns of names and numbers; most lines in one file
}

// display is how a change is named.
func display(c *change) string {
	if c.from == "" {
		return Quote(c.path)
	}
	return Quote(c.from) + " => " + Quote(c.path)
}

func (s *stat) measure(changes []*change) {
	for _, c := range changes {
		s.name = max(s.name, utf8.RuneCountInString(display(c)))
		s.most = max(s.most, c.ins+c.del)
		s.number = max(s.number, len(fmt.Sprint(c.ins+c.del)))
		if c.binary {
			s.number = max(s.number, len("Bin"))
		}
	}
	// " name | number bar": five columns are neither.
	s.name = min(s.name, max(s.width-s.number-5-s.width*3/8, 10))
}

func (s *stat) line(c *change) {
	name := display(c)
	if len(name) > s.name {
		name = "..." + name[len(name)-s.name+3:]
	}
	fmt.Fprintf(s.w, " %-*s | ", s.name, name)
	if c.binary {
		fmt.Fprintf(s.w, "%*s %d -> %d bytes\n", s.number, "Bin", size(c.old), size(c.new))
		return
	}
	fmt.Fprintf(s.w, "%*d", s.number, c.ins+c.del)
	if c.ins+c.del > 0 {
		s.bar(c)
	}
	s.w.WriteByte('\n')
}

func size(n *node) int64 {
	if n == nil {
		return 0
	}
	return n.size
}

func (s *stat) bar(c *change) {
	room := max(s.width-s.name-s.number-5, 5)
	plus, minus := c.ins, c.del
	if s.most > room {
		total := max(scale(plus+minus, room, s.most), 1)
		plus = scale(plus, room, s.most)
		if plus == 0 && c.ins > 0 {
			plus = 1
		}
		if minus > 0 {
			total = max(total, plus+1)
		}
		minus = total - plus
		if c.del == 0 {
			plus, minus = total, 0
		}
	}
	s.w.WriteByte(' ')
	s.run(plus, '+', "\x1b[32m")
	s.run(minus, '-', "\x1b[31m")
}

func scale(n, room, most int) int { return n * room / most }

func (s *stat) run(n int, mark byte, color string) {
	if n <= 0 {
		return
	}
	text := strings.Repeat(string(mark), n)
	if s.color {
		text = color + text + "\x1b[m"
	}
	s.w.WriteString(text)
}

func (s *stat) summary(changes []*change) {
	files, ins, del := 0, 0, 0
	for _, c := range changes {
		if c.old.isDir() || c.new.isDir() {
			continue
		}
		files, ins, del = files+1, ins+c.ins, del+c.del
	}
	if files == 0 {
		return
	}
	fmt.Fprintf(s.w, " %s changed", plural(files, "file", "files"))
	if ins > 0 || del == 0 {
		fmt.Fprintf(s.w, ", %s(+)", plural(ins, "insertion", "insertions"))
	}
	if del > 0 || ins == 0 {
		fmt.Fprintf(s.w, ", %s(-)", plural(del, "deletion", "deletions"))
	}
	s.w.WriteByte('\n')
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
