package operate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"entrepot/admin"
	"entrepot/ledger"
	"entrepot/warm"
	"entrepot/words"
)

// The widths of the picture: where nobody knows that of the terminal, and at
// most.
const (
	plainWidth = 80
	maxWidth   = 120
)

// style is how a terminal shows text.
type style string

const (
	plain  style = ""
	bold   style = "1"
	dim    style = "2"
	red    style = "31"
	green  style = "32"
	yellow style = "33"
)

// ink is text in one style.
type ink struct {
	style style
	text  string
}

// picture is the status as blocks of lines that fit the width.
type picture struct {
	width  int
	colour bool
	blocks []block
}

// block is a part of the picture, which may have to do with fewer rows.
type block struct {
	name   string
	weight int // what is heavier comes first where room is short
	head   []string
	rows   [][]string // of a line each, or of a line and what explains it
	more   int        // rows there are beside these
}

// heading begins a block that is set off from the one before.
func (p *picture) heading(name string, weight int, inks ...ink) {
	p.blocks = append(p.blocks, block{name: name, weight: weight})
	if len(p.blocks) > 1 {
		p.head()
	}
	if len(inks) > 0 {
		p.head(inks...)
	}
}

// head adds a line that stays as long as its block does.
func (p *picture) head(inks ...ink) {
	b := &p.blocks[len(p.blocks)-1]
	b.head = append(b.head, p.render(inks))
}

// line adds a row.
func (p *picture) line(inks ...ink) {
	b := &p.blocks[len(p.blocks)-1]
	b.rows = append(b.rows, []string{p.render(inks)})
}

// under adds a line to the last row.
func (p *picture) under(inks ...ink) {
	b := &p.blocks[len(p.blocks)-1]
	last := len(b.rows) - 1
	b.rows[last] = append(b.rows[last], p.render(inks))
}

// render is a line. What does not fit is cut, and … says so.
func (p *picture) render(inks []ink) string {
	var b strings.Builder
	left := p.width
	for _, one := range inks {
		text := []rune(words.Printable(one.text))
		if len(text) > left {
			text = slices.Concat(text[:max(0, left-1)], []rune("…")[:min(1, left)])
		}
		left -= len(text)
		if p.colour && one.style != plain && len(text) > 0 {
			fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", one.style, string(text))
		} else {
			b.WriteString(string(text))
		}
	}
	return strings.TrimRight(b.String(), " ")
}

// fold is text in so many lines at most, one at least, of which the first has room for
// first columns, and the others for width. What is left is in the last one.
func fold(text string, first, width, most int) (lines []string) {
	text = strings.TrimSpace(words.Printable(text))
	for room := first; ; room = width {
		runes := []rune(text)
		if room = max(room, 1); len(runes) <= room || len(lines) == most-1 {
			return append(lines, text)
		}
		end := room
		for end > 0 && runes[end] != ' ' {
			end--
		}
		if end == 0 && len(lines) > 0 { // a word that is longer than a line
			end = room
		}
		lines = append(lines, string(runes[:end]))
		text = strings.TrimSpace(string(runes[end:]))
	}
}

// left puts text at the start of a column, and cuts a longer one in its middle:
// it is at the ends that names differ.
func left(width int, text string) string {
	runes := []rune(text)
	if len(runes) > width {
		head := (width - 1) / 2
		runes = slices.Concat(runes[:head], []rune("…"), runes[len(runes)-(width-1-head):])
	}
	return string(runes) + strings.Repeat(" ", width-len(runes))
}

// right puts text at the end of a column.
func right(width int, text string) string {
	return strings.Repeat(" ", max(0, width-len([]rune(text)))) + text
}

// gauge shows a share.
func gauge(width int, share float64, s style) []ink {
	full := int(min(max(share, 0), 1)*float64(width) + 0.5)
	return []ink{{s, strings.Repeat("█", full)}, {dim, strings.Repeat("░", width-full)}}
}

func (p *picture) draw(s admin.Status, where string) {
	p.heading("", headerWeight)
	p.head(ink{bold, "Entrepôt " + s.Version}, ink{plain, "  up " + spanText(s.Now.Sub(s.Since)) + "  "}, ink{dim, strings.TrimSuffix(where, "/") + "  " + s.Data})
	p.unread(s)
	p.quotas(s)
	p.hosts(s)
	p.spent(s)
	p.fills(s)
	p.room(s)
}

// unread tells of changes that are not in force.
func (p *picture) unread(s admin.Status) {
	if len(s.Unread) == 0 {
		return
	}
	p.heading("FILES", filesWeight, ink{bold, "FILES  "}, ink{red, strconv.Itoa(len(s.Unread)) + " cannot be read"}, ink{plain, ": what was read before stays"})
	for _, u := range s.Unread {
		title := "  " + u.What + " for " + spanText(s.Now.Sub(u.Since)) + ": "
		why := fold(u.Error, p.width-len([]rune(title)), p.width-4, 3)
		p.line(ink{plain, title}, ink{dim, why[0]})
		for _, line := range why[1:] {
			p.under(ink{dim, "    " + line})
		}
		for _, setting := range u.Settings {
			p.under(ink{plain, "    " + setting})
		}
	}
}

// nameWidth is the room for names: what the numbers leave.
func (p *picture) nameWidth() int { return max(24, p.width-56) }

func (p *picture) quotas(s admin.Status) {
	if len(s.Quotas) == 0 {
		return
	}
	name, bar := p.quotaWidths()
	p.heading("QUOTA", quotaWeight, ink{bold, left(name, "QUOTA")}, ink{dim, "  " + left(bar, "") + right(12, "LEFT") + right(8, "KEPT") + right(14, "RESETS IN")})
	for _, q := range s.Quotas {
		account := q.Account
		if account == "" {
			account = "(our address)"
		}
		share, numbers, kept := 0.0, "?", "-"
		switch {
		case q.Limit > 0 && q.Left >= 0:
			share, numbers = float64(q.Left)/float64(q.Limit), fmt.Sprintf("%d of %d", q.Left, q.Limit)
		case q.Limit > 0:
			numbers = "? of " + strconv.Itoa(q.Limit)
		}
		if q.Reserve > 0 {
			kept = strconv.Itoa(q.Reserve)
		}
		inks := []ink{{plain, left(name, q.Upstream+" "+account) + "  "}}
		inks = append(inks, gauge(bar, share, quotaStyle(q))...)
		p.line(append(inks, ink{plain, right(12, numbers) + right(8, kept) + right(14, resetsText(q, s.Now))})...)
		if text := pauseText(q, s.Now); text != "" {
			p.under(ink{plain, "    " + text})
		}
		p.remedy(q.Remedy)
	}
}

// quotaWidths is the room for names and bars beside 34 columns of numbers: where it
// is short, bars go first.
func (p *picture) quotaWidths() (name, bar int) {
	short := max(0, plainWidth-p.width)
	bar = max(6, 20-short)
	return max(12, p.nameWidth()-(short-(20-bar))), bar
}

// remedy is what can be done about the row above; empty for nothing.
func (p *picture) remedy(text string) {
	if text != "" {
		p.under(ink{dim, "    " + text})
	}
}

// resetsText says when a quota will be there again; ≤ is at the latest.
func resetsText(q admin.Quota, now time.Time) string {
	switch {
	case q.Resets.After(now) && q.Exact:
		return spanText(q.Resets.Sub(now))
	case q.Resets.After(now):
		return "≤ " + spanText(q.Resets.Sub(now))
	}
	return "-"
}

// pauseText says when it is found out whether a quota is there again; empty where
// that is known, or asked for by any pull.
func pauseText(q admin.Quota, now time.Time) string {
	if !q.Paused.After(now) {
		return ""
	}
	return "upstream refused a pull: the next is asked for in " + spanText(q.Paused.Sub(now))
}

// quotaStyle warns before the end.
func quotaStyle(q admin.Quota) style {
	switch {
	case q.Left <= q.Reserve:
		return red
	case q.Left*4 <= q.Limit:
		return yellow
	}
	return green
}

// spent shows what was spent: in all, and by whom on what.
func (p *picture) spent(s admin.Status) {
	title := "LAST " + strings.ToUpper(words.Count(s.Spent.Hours, "hour"))
	p.heading(title, spentWeight, ink{bold, left(p.nameWidth(), title)}, ink{dim, sumColumns("REQUESTS", "HELD", "SERVED", "SAVED", "PULLS", "HEADS", "FETCHED")})
	lines := s.Spent.Upstreams.Lines
	for _, line := range lines {
		p.sum(line.Upstream, plain, line.Sum)
	}
	if others := s.Spent.Upstreams.Others; isVisible(others) {
		p.sum("others", dim, others)
	}
	if len(lines) != 1 {
		p.sum("all", bold, s.Spent.Total)
	}
	p.list("ACCOUNTS", accountsWeight, s.Spent.Accounts, "(our address)", 2)
	p.list("CLIENTS", clientsWeight, s.Spent.Clients, "(itself)", 1)
	p.list("REPOSITORIES", repositoriesWeight, s.Spent.Repositories, "(none)", 1)
}

// sumColumns are 56 characters wide.
func sumColumns(requests, held, served, saved, pulls, heads, fetched string) string {
	return right(9, requests) + right(7, held) + right(10, served) + right(7, saved) + right(7, pulls) + right(7, heads) + right(9, fetched)
}

// sum is a row of these columns, with a line below it where clients had trouble.
func (p *picture) sum(name string, s style, sum ledger.Sum) {
	p.line(ink{s, left(p.nameWidth(), name)}, ink{plain, sumColumns(
		numberText(sum.Requests), percent(sum.Held, sum.Requests), sizeText(sum.Served), percent(sum.Saved, sum.Served),
		numberText(sum.Pulls), numberText(sum.Heads), sizeText(sum.Fetched),
	)})
	var trouble []ink
	if sum.Stale > 0 {
		trouble = append(trouble, ink{yellow, numberText(sum.Stale) + " stale"})
	}
	for _, kind := range []struct {
		n     int64
		style style
		text  string
	}{{sum.Denied, yellow, " denied"}, {sum.Limited, yellow, " limited"}, {sum.Failed - sum.Denied - sum.Limited, red, " in trouble"}} {
		if kind.n > 0 {
			trouble = append(trouble, ink{kind.style, numberText(kind.n) + kind.text})
		}
	}
	if len(trouble) == 0 {
		return
	}
	line := []ink{{plain, "  of the requests "}, trouble[0]}
	for _, one := range trouble[1:] {
		line = append(line, ink{plain, ", "}, one)
	}
	p.under(line...)
}

// isVisible reports whether a sum has anything in these columns.
func isVisible(sum ledger.Sum) bool {
	sum.Calls = 0
	return sum != (ledger.Sum{})
}

// list shows the top of a list, unless it has fewer lines than say more than the
// sums do.
func (p *picture) list(title string, weight int, list admin.Spenders, nobody string, least int) {
	list.Lines = slices.DeleteFunc(slices.Clone(list.Lines), func(l admin.Spender) bool { return !isVisible(l.Sum) })
	if len(list.Lines) < least {
		return
	}
	p.heading(title, weight, ink{bold, title})
	for _, line := range list.Lines {
		name := line.Name
		if name == "" {
			name = nobody
		}
		if title == "REPOSITORIES" {
			name = line.Upstream + "/" + name
		} else {
			name = withUpstream(p.nameWidth(), name, line.Upstream)
		}
		p.sum(name, plain, line.Sum)
	}
	if isVisible(list.Others) {
		p.sum("others", dim, list.Others)
	}
}

// withUpstream puts an upstream behind a name, which is cut where both do not
// fit.
func withUpstream(width int, name, upstream string) string {
	room := max(width-1-len(upstream), 8)
	if len([]rune(name)) > room {
		name = left(room, name)
	}
	return name + " " + upstream
}

// maxFills is how many fills are shown.
const maxFills = 10

func (p *picture) fills(s admin.Status) {
	if len(s.Fills) == 0 {
		p.heading("ON THEIR WAY", fillsWeight, ink{bold, "ON THEIR WAY  "}, ink{dim, "nothing"})
		return
	}
	name := p.nameWidth()
	p.heading("ON THEIR WAY", fillsWeight, ink{bold, left(name, "ON THEIR WAY")}, ink{dim, "  " + left(7, "DIGEST") + right(21, "SIZE") + right(10, "RATE") + right(8, "READERS") + right(8, "STREAMS")})
	for _, f := range s.Fills[:min(len(s.Fills), maxFills)] {
		size, share := "≥ "+words.Bytes(f.Landed), 0.0
		if f.Size >= 0 {
			size, share = words.Bytes(f.Size), float64(f.Landed)/float64(max(1, f.Size))
		}
		inks := []ink{{plain, left(name, f.Repository) + "  "}, {dim, f.Digest.Hex()[:6] + " "}}
		inks = append(inks, gauge(7, share, green)...)
		p.line(append(inks, ink{plain, right(6, percent(f.Landed, f.Size)) + right(8, size) + right(10, words.Bytes(f.BytesPerSecond)+"/s") +
			right(8, strconv.Itoa(f.Readers)) + right(8, strconv.Itoa(f.Streams))})...)
		if text := fillText(f, s.Now); text != "" {
			p.under(ink{yellow, "    " + text})
		}
	}
	p.blocks[len(p.blocks)-1].more = max(0, len(s.Fills)-maxFills)
}

// fillText says of a blob how it hardly comes; empty if it does.
func fillText(f admin.Fill, now time.Time) string {
	switch f.Trouble {
	case admin.Stalled:
		return "stalled: nothing has come for " + spanText(now.Sub(f.LastCame()))
	case admin.Slow:
		return "slow on average: it began " + spanText(now.Sub(f.Began)) + " ago"
	}
	return ""
}

func (p *picture) room(s admin.Status) {
	p.heading("ROOM", roomWeight)
	share, text := 0.0, words.Bytes(s.Disk.Held)+" held, no cap"
	if s.Disk.Budget > 0 {
		share, text = float64(s.Disk.Held)/float64(s.Disk.Budget), words.Bytes(s.Disk.Held)+" of "+words.Bytes(s.Disk.Budget)+" held"
	} else if all := s.Disk.Held + s.Disk.Free; all > 0 {
		share = float64(s.Disk.Held) / float64(all)
	}
	p.head(slices.Concat([]ink{{bold, "DISK    "}}, gauge(20, share, plain), []ink{{plain, "  " + text + ", " + words.Bytes(s.Disk.Free) + " free"}})...)
	share = float64(s.Memory.Held) / float64(max(1, s.Memory.Budget))
	text = words.Bytes(s.Memory.Held) + " of " + words.Bytes(s.Memory.Budget) + " for what is small; in all " + words.Bytes(s.Memory.Process)
	p.head(slices.Concat([]ink{{bold, "MEMORY  "}}, gauge(20, share, plain), []ink{{plain, "  " + text}})...)
	p.warm(s)
}

// warm is a line about the images that are kept warm, if there are any: first those
// that an operator can do something about.
func (p *picture) warm(s admin.Status) {
	all := 0
	for _, n := range s.Warm {
		all += n
	}
	if all > 0 {
		p.warmCounts(s, all)
	}
	if s.WarmError == "" {
		return
	}
	const title = "WARM    "
	name := strings.Repeat(" ", len(title))
	if all == 0 {
		name = title
	}
	for _, line := range fold("ENTREPOT_WARM_FILE cannot be taken as it is: "+s.WarmError, p.width-len(title), p.width-len(title), 4) {
		p.head(ink{bold, name}, ink{red, line})
		name = strings.Repeat(" ", len(title))
	}
}

// warmCounts is how many of all images are here, and how the others are.
func (p *picture) warmCounts(s admin.Status, all int) {
	good := s.Warm[string(warm.Warm)]
	inks := slices.Concat([]ink{{bold, "WARM    "}}, gauge(20, float64(good)/float64(all), plain), []ink{{plain, fmt.Sprintf("  %d of %d here", good, all)}})
	for _, state := range []struct {
		status warm.Status
		style  style
	}{{warm.Missing, red}, {warm.Failed, yellow}, {warm.Waiting, yellow}, {warm.Evicted, yellow}, {warm.Stale, yellow}, {warm.Fetching, plain}, {warm.Deferred, plain}, {warm.Pending, plain}} {
		if n := s.Warm[string(state.status)]; n > 0 {
			inks = append(inks, ink{plain, ", "}, ink{state.style, strconv.Itoa(n) + " " + string(state.status)})
		}
	}
	p.head(inks...)
}

// percent is a share in per cent, to a tenth where that tells something.
func percent(part, whole int64) string {
	if whole <= 0 {
		return "-"
	}
	share := 100 * float64(part) / float64(whole)
	if share > 99.9 && part < whole {
		return ">99.9%"
	}
	return strings.TrimSuffix(strconv.FormatFloat(share, 'f', 1, 64), ".0") + "%"
}

// sizeText is a size, of which nothing is not worth a number.
func sizeText(n int64) string {
	if n == 0 {
		return "-"
	}
	return words.Bytes(n)
}

// numberText is a count in six characters at most.
func numberText(n int64) string {
	switch {
	case n == 0:
		return "-"
	case n < 100_000:
		return strconv.FormatInt(n, 10)
	case n < 10_000_000:
		return strconv.FormatInt(n/1000, 10) + "k"
	}
	return strconv.FormatInt(n/1_000_000, 10) + "M"
}

// spanText is a duration in its two largest units.
func spanText(d time.Duration) string {
	switch {
	case d < time.Minute:
		return strconv.Itoa(int(max(0, d.Round(time.Second))/time.Second)) + "s"
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return strconv.Itoa(int(d/(24*time.Hour))) + " days"
}
