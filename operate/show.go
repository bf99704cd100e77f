package operate

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"entrepot/admin"
	"entrepot/words"

	"github.com/schollz/progressbar/v3"
)

// table is a list for people, or the same as lines of JSON.
type table struct {
	o    *operation
	w    *tabwriter.Writer // nil for JSON
	rows int
}

func (o *operation) newTable(columns ...string) *table {
	t := &table{o: o}
	if !o.json {
		t.w = tabwriter.NewWriter(o.in.Stdout, 0, 0, 3, ' ', 0)
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

// end writes the table, or what to say instead of an empty one.
func (t *table) end(none string) error {
	switch {
	case t.w == nil:
		return nil
	case t.rows == 0:
		_, err := fmt.Fprintf(t.o.in.Stderr, "%s\n", none)
		return err
	}
	return t.w.Flush()
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
	bytes  bool
	drawn  *progressbar.ProgressBar
	counts bool
}

func (o *operation) newBar(what string, bytes bool) *bar {
	b := &bar{what: what, bytes: bytes}
	if o.in.ErrTerminal {
		b.out = o.in.Stderr
	}
	return b
}

// show draws done of total.
func (b *bar) show(done, total int64) {
	if b.out == nil || total <= 0 {
		return
	}
	if b.drawn == nil {
		b.drawn = progressbar.NewOptions64(total,
			progressbar.OptionSetWriter(b.out), progressbar.OptionSetDescription(b.what), progressbar.OptionSetWidth(30),
			progressbar.OptionShowBytes(b.bytes), progressbar.OptionUseIECUnits(true), progressbar.OptionShowTotalBytes(b.bytes),
			progressbar.OptionSetPredictTime(true), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(barEvery))
	}
	b.drawn.ChangeMax64(total)
	_ = b.drawn.Set64(min(done, total-1)) // at the end it would clear itself, and begin anew
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
	if b.drawn != nil {
		_ = b.drawn.Clear()
	}
	if b.counts {
		fmt.Fprint(b.out, "\r\x1b[K")
	}
}
