package operate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/ledger"
	"entrepot/words"

	"golang.org/x/term"
)

const statusHelp = `Usage: entrepot status [--hours 6] [--top 5] [--watch [interval]]

Shows what goes on in a running server: files that were changed and cannot be
read, what is left of each quota, which hosts do not answer, what clients wait
for, which logins are refused, how much was served from what is held, who and
what spent most in the last hours, the blobs on their way in, disk and memory. A
pull is a GET of a manifest, which is what Docker Hub counts. What several
clients share is on the one that began it. Of the requests that failed, denied
are those for what is not allowed or, as many registries say it, not there;
limited those that met a quota or another limit; in trouble all others.

  --hours N          how far back, from 1 to 24; the running hour is one of them
  --top N            how many clients and repositories, up to 100
  --watch [5s]       again and again, every two seconds or at another interval,
                     until ^C; with --json a line each time

It is coloured on a terminal, unless NO_COLOR is set.
` + liveHelp

// watchEvery is how often a picture is drawn anew, unless the operator says.
const (
	watchEvery  = 2 * time.Second
	minInterval = 100 * time.Millisecond
)

func status(ctx context.Context, in Invocation) (err error) {
	o := newOperation(in, "status")
	defer o.end(&err)
	hours, top := 6, 5
	o.boundedInt(&hours, "hours", 1, ledger.Hours)
	o.boundedInt(&top, "top", 0, admin.MaxTop)
	w := &statusWatch{o: o}
	o.flags.BoolFunc("watch", "", w.parseInterval)
	if err := o.begin(ctx, 0, 1); err != nil {
		return err
	}
	for _, arg := range o.args {
		if w.interval == 0 {
			return o.misused("it takes no argument, and not %s", words.Quote(arg))
		}
		if err := w.parseInterval(arg); err != nil {
			return o.misused("--watch: %v", err)
		}
	}
	w.query = url.Values{"hours": {strconv.Itoa(hours)}, "top": {strconv.Itoa(top)}}
	if w.interval == 0 {
		return w.show(ctx)
	}
	return w.watch(ctx)
}

// statusWatch shows the status, once or again and again.
type statusWatch struct {
	o        *operation
	query    url.Values
	interval time.Duration // 0: once
	drawn    bool          // something was shown
	last     admin.Status  // what was shown
}

// parseInterval reads the value of --watch, which is "true" where none is given.
func (w *statusWatch) parseInterval(text string) (err error) {
	w.interval = watchEvery
	if text == "true" {
		return nil
	}
	if w.interval, err = time.ParseDuration(text); err != nil || w.interval < minInterval {
		return fmt.Errorf("%s is no interval: want %v at least, such as 5s", words.Quote(text), minInterval)
	}
	return nil
}

// watch ends with ctx, which is no failure. A server that goes away may come
// back.
func (w *statusWatch) watch(ctx context.Context) error {
	next := time.NewTicker(w.interval)
	defer next.Stop()
	for {
		err := w.show(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !w.drawn:
			return err
		case err != nil:
			fmt.Fprintf(w.o.in.Stderr, "\r%s%s: trying again", clearLine(w.o.in.ErrTerminal), words.Printable(err.Error()))
			if !w.o.in.ErrTerminal {
				fmt.Fprintln(w.o.in.Stderr)
			}
		}
		select {
		case <-next.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func clearLine(terminal bool) string {
	if terminal {
		return "\x1b[K"
	}
	return ""
}

func (w *statusWatch) show(ctx context.Context) error {
	o := w.o
	raw, err := o.client.Get(ctx, "status", w.query, nil)
	if err != nil {
		return fmt.Errorf("status: %w", o.explain(err, admin.Target{}))
	}
	var s admin.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if o.json {
		w.drawn = true
		return o.writeLine(raw)
	}
	w.last, s = s, withCurrentRates(w.last, s)
	p := picture{width: plainWidth, colour: o.in.Colour && o.in.OutTerminal}
	width, height := o.terminal()
	if width > 0 {
		p.width = min(width, maxWidth)
	}
	p.draw(s, o.client.Where())
	over := height > 0 && w.interval > 0
	if !over {
		height = 1 // nothing is cut that can be scrolled
	}
	return w.put(p.fit(height-1), over)
}

// terminal is the size of the terminal that is written to; zero if it is none.
func (o *operation) terminal() (width, height int) {
	f, ok := o.in.Stdout.(*os.File)
	if !ok || !o.in.OutTerminal {
		return 0, 0
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 {
		return 0, 0
	}
	return width, height
}

// withCurrentRates replaces the mean rates of fills by those since the last
// picture.
func withCurrentRates(last, s admin.Status) admin.Status {
	s.Fills = slices.Clone(s.Fills)
	for i, f := range s.Fills {
		at := slices.IndexFunc(last.Fills, func(l admin.Fill) bool { return l.Digest == f.Digest && l.Began.Equal(f.Began) })
		if took := s.Now.Sub(last.Now).Seconds(); at >= 0 && took > 0 {
			s.Fills[i].BytesPerSecond = int64(float64(f.Landed-last.Fills[at].Landed) / took)
		}
	}
	return s
}

// put writes the picture, over the last one or below it.
func (w *statusWatch) put(lines []string, over bool) error {
	var b strings.Builder
	if over && !w.drawn {
		b.WriteString("\x1b[2J")
	}
	if over {
		b.WriteString("\x1b[H")
	}
	if w.drawn && !over {
		b.WriteByte('\n')
	}
	for _, line := range lines {
		b.WriteString(line)
		b.WriteString(clearLine(over))
		b.WriteByte('\n')
	}
	if over {
		b.WriteString("\x1b[J")
	}
	w.drawn = true
	_, err := w.o.in.Stdout.Write([]byte(b.String()))
	return err
}
