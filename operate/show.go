package operate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"entrepot/admin"
	"entrepot/words"

	"github.com/schollz/progressbar/v3"
)

// table is a list for people, or the same as lines of JSON.
type table struct {
	o     *operation
	text  bytes.Buffer
	w     *tabwriter.Writer // of text; nil for JSON
	rows  int
	width int            // what is longer is cut; 0 for nothing
	below map[int]string // what is said below a row, by the row's number
}

func (o *operation) newTable(columns ...string) *table {
	t := &table{o: o, below: map[int]string{}}
	if !o.json {
		t.w = tabwriter.NewWriter(&t.text, 0, 0, 3, ' ', 0)
		fmt.Fprintln(t.w, strings.Join(columns, "\t"))
	}
	return t
}

// row adds a row; raw is what it is made of.
func (t *table) row(raw json.RawMessage, cells ...string) error {
	t.rows++
	if t.w == nil {
		return t.o.writeLine(raw)
	}
	for i, cell := range cells {
		cells[i] = words.Printable(cell)
	}
	_, err := fmt.Fprintln(t.w, strings.Join(cells, "\t"))
	return err
}

// under says something below the last row, on a line of its own.
func (t *table) under(text string) { t.below[t.rows] = "    " + words.Printable(text) }

// end writes the table, or what to say instead of an empty one.
func (t *table) end(none string) error {
	switch {
	case t.w == nil:
		return nil
	case t.rows == 0:
		_, err := fmt.Fprintf(t.o.in.Stderr, "%s\n", none)
		return err
	}
	if err := t.w.Flush(); err != nil {
		return err
	}
	var out bytes.Buffer
	row := 0
	for line := range strings.Lines(t.text.String()) {
		fmt.Fprintln(&out, t.fit(strings.TrimRight(line, " \n")))
		if text := t.below[row]; text != "" {
			fmt.Fprintln(&out, t.fit(text))
		}
		row++
	}
	_, err := out.WriteTo(t.o.in.Stdout)
	return err
}

// fit cuts a line, and … says so.
func (t *table) fit(line string) string {
	if runes := []rune(line); t.width > 0 && len(runes) > t.width {
		return string(runes[:t.width-1]) + "…"
	}
	return line
}

// facts are names with their values, for people.
type facts struct{ w *tabwriter.Writer }

func (o *operation) newFacts() facts { return facts{tabwriter.NewWriter(o.in.Stdout, 0, 0, 3, ' ', 0)} }

// add adds a fact, unless it is not known.
func (f facts) add(name, value string) {
	if value != "" {
		fmt.Fprintf(f.w, "%s\t%s\n", name, words.Printable(value))
	}
}

func (f facts) end() error { return f.w.Flush() }

func mark(yes bool) string {
	if yes {
		return "yes"
	}
	return "-"
}

// platformsText names the platforms of which something but the manifest is held,
// and counts the others.
func platformsText(all []admin.Platform) string {
	var names []string
	others := 0
	for _, p := range all {
		switch {
		case p.Size < 0:
			others++
		case p.Bytes < p.Size:
			names = append(names, p.Platform+" (part)")
		default:
			names = append(names, p.Platform)
		}
	}
	if others > 0 {
		names = append(names, fmt.Sprintf("%d not held", others))
	}
	if len(names) == 0 {
		return "-"
	}
	return strings.Join(names, ", ")
}

// barEvery is how often a bar is drawn anew, at most.
const barEvery = 100 * time.Millisecond

// bar shows how far long work is, to a terminal.
type bar struct {
	out    io.Writer // nil: nobody looks
	what   string
	begun  *progressbar.ProgressBar // its clock runs from the start of the work
	total  int64                    // that is drawn; 0 before
	counts bool
}

func (o *operation) newBar(what string, bytes bool) *bar {
	if !o.in.ErrTerminal {
		return &bar{what: what}
	}
	return barOn(o.in.Stderr, what, bytes)
}

func barOn(out io.Writer, what string, bytes bool) *bar {
	b := &bar{out: out, what: what}
	b.begun = progressbar.NewOptions64(math.MaxInt64,
		progressbar.OptionSetWriter(out), progressbar.OptionSetDescription(what), progressbar.OptionSetWidth(30),
		progressbar.OptionShowBytes(bytes), progressbar.OptionUseIECUnits(true), progressbar.OptionShowTotalBytes(bytes),
		progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(barEvery))
	b.begun.StartWithoutRender()
	return b
}

// show draws done of total.
func (b *bar) show(done, total int64) {
	if b.out == nil || total <= 0 {
		return
	}
	done = min(done, total-1) // at the end it would clear itself, and begin anew
	if b.total == 0 {
		_ = b.begun.Set64(done) // first: a new total counts as nothing done till now
	}
	if b.total != total {
		b.total = total
		b.begun.ChangeMax64(total)
	}
	_ = b.begun.Set64(done)
}

// count shows a number whose end is unknown.
func (b *bar) count(n int) {
	if b.out != nil {
		b.counts = true
		fmt.Fprintf(b.out, "\r%s: %d", b.what, n)
	}
}

// end takes the bar from the screen.
func (b *bar) end() {
	if b.total > 0 {
		_ = b.begun.Clear()
	}
	if b.counts {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
