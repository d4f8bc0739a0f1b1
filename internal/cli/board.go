package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"proa/internal/client"
)

// drawEvery is how often a board is drawn anew while only numbers change.
const drawEvery = 100 * time.Millisecond

// board shows what a long request says: on a terminal one line for each layer,
// which changes in place, elsewhere one line for each change of state.
type board struct {
	out   io.Writer
	size  func() (width, rows int) // of the terminal, as it is now
	width int                      // 0: no terminal
	rows  int

	order []string // ids of the lines that move
	lines map[string]string
	said  map[string]string // last state of each id
	drawn int               // lines that are on the screen
	dirty bool
	last  time.Time
}

func newBoard(out io.Writer) *board {
	b := &board{out: out, lines: map[string]string{}, said: map[string]string{}}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		b.size = func() (width, rows int) {
			w, h, err := term.GetSize(int(f.Fd()))
			if err != nil || w <= 0 || h <= 0 { // a terminal that does not say
				return 80, 24
			}
			return w, h
		}
		b.width, b.rows = b.size()
	}
	return b
}

// show takes one message.
func (b *board) show(p client.Progress) {
	moving := p.Detail != nil && p.ID != ""
	if b.width == 0 {
		switch {
		case p.Status == "":
		case p.ID == "":
			fmt.Fprintln(b.out, p.Status)
		case b.said[p.ID] != p.Status && p.Status != "Downloading" && p.Status != "Pushing" && p.Status != "Extracting":
			fmt.Fprintf(b.out, "%s: %s\n", p.ID, p.Status)
			b.said[p.ID] = p.Status
		}
		return
	}
	if !moving {
		if p.Status == "" {
			return
		}
		// A line that stays: above the next block of moving ones.
		b.end()
		if p.ID != "" {
			p.Status = p.ID + ": " + p.Status
		}
		fmt.Fprintln(b.out, p.Status)
		return
	}
	line := p.ID + ": " + p.Status
	if p.Detail.Total > 0 {
		line += " " + bar(p.Detail.Current, p.Detail.Total, b.width-len(line)-25)
	}
	if _, ok := b.lines[p.ID]; !ok {
		b.order = append(b.order, p.ID)
	}
	b.lines[p.ID], b.dirty = line, true
	if now := time.Now(); b.said[p.ID] != p.Status || now.Sub(b.last) >= drawEvery {
		b.said[p.ID] = p.Status
		b.draw()
		b.last = now
	}
}

// draw puts the block of moving lines over the one before. Of more lines than
// the screen has, the last ones are shown.
func (b *board) draw() {
	b.width, b.rows = b.size() // people change it meanwhile
	show := b.order[max(0, len(b.order)-max(1, b.rows-2)):]
	var s strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&s, "\x1b[%dA", b.drawn)
	}
	for _, id := range show {
		line := b.lines[id]
		if len(line) >= b.width {
			line = line[:max(0, b.width-1)]
		}
		s.WriteString("\r\x1b[K" + line + "\n")
	}
	b.drawn, b.dirty = max(b.drawn, len(show)), false
	fmt.Fprint(b.out, s.String())
}

// end leaves the moving lines as they are and begins anew below them.
func (b *board) end() {
	if b.dirty {
		b.draw()
	}
	b.order, b.drawn = nil, 0
	clear(b.lines)
}

// bar is "[====>    ] 12.3MB/45.6MB" with width characters between the brackets.
func bar(done, total int64, width int) string {
	numbers := humanSize(done) + "/" + humanSize(total)
	width = min(width, 40)
	if width < 5 {
		return numbers
	}
	full := int(done * int64(width) / total)
	full = min(max(full, 0), width)
	b := strings.Repeat("=", full)
	if full < width {
		b += ">" + strings.Repeat(" ", width-full-1)
	}
	return "[" + b + "] " + numbers
}
