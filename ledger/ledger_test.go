package ledger

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

const hub = "docker.io"

func alpine(client string) Party { return Party{hub, "me", "library/alpine", client} }

// sides are a report's lists.
func lists(r Report) map[string]List {
	return map[string]List{"upstreams": r.Upstreams, "repositories": r.Repositories, "clients": r.Clients}
}

// wantExact expects that nothing of want is lost, or told twice, from any side.
func wantExact(t *testing.T, r Report, want Sum) {
	t.Helper()
	if diff := cmp.Diff(want, r.Total); diff != "" {
		t.Errorf("total (-want +got):\n%s", diff)
	}
	for side, list := range lists(r) {
		got := list.Others
		for _, line := range list.Lines {
			got.add(line.Sum)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("lines and others of %s (-want +got):\n%s", side, diff)
		}
		if !list.Others.isPossible() {
			t.Errorf("others of %s: %+v", side, list.Others)
		}
	}
}

func TestWhoAndWhatSpentIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		l.Spent(alpine("a"), Sum{Calls: 1, Heads: 1})
		l.Spent(alpine("a"), Sum{Calls: 1, Pulls: 1})
		l.Spent(alpine("a"), Sum{Fetched: 1 << 20})
		l.Spent(Party{hub, "", "library/redis", "b"}, Sum{Calls: 1, Pulls: 1})
		l.Spent(Party{"quay.io", "", "team/app", ""}, Sum{Calls: 1})
		l.Served(hub, "library/alpine", "a", Fetched, 1<<20, 0)
		l.Served(hub, "library/alpine", "b", Held, 0, 1<<20)
		l.Served(hub, "library/alpine", "b", Stale, 0, 500)
		l.Served(hub, "library/alpine", "b", Failed, 0, 0)
		r := l.Report(6, 10)
		total := Sum{Requests: 4, Held: 2, Stale: 1, Failed: 1, Served: 2<<20 + 500, Saved: 1<<20 + 500, Pulls: 2, Heads: 1, Calls: 4, Fetched: 1 << 20}
		wantExact(t, r, total)
		want := Report{
			Since: time.Now().Truncate(time.Hour),
			Total: total,
			Upstreams: List{Lines: []Line{
				{Key{hub, ""}, Sum{Requests: 4, Held: 2, Stale: 1, Failed: 1, Served: 2<<20 + 500, Saved: 1<<20 + 500, Pulls: 2, Heads: 1, Calls: 3, Fetched: 1 << 20}},
				{Key{"quay.io", ""}, Sum{Calls: 1}},
			}},
			Accounts: List{Lines: []Line{
				{Key{hub, "me"}, Sum{Pulls: 1, Heads: 1, Calls: 2, Fetched: 1 << 20}},
				{Key{hub, ""}, Sum{Pulls: 1, Calls: 1}},
				{Key{"quay.io", ""}, Sum{Calls: 1}},
			}},
			Repositories: List{Lines: []Line{
				{Key{hub, "library/alpine"}, Sum{Requests: 4, Held: 2, Stale: 1, Failed: 1, Served: 2<<20 + 500, Saved: 1<<20 + 500, Pulls: 1, Heads: 1, Calls: 2, Fetched: 1 << 20}},
				{Key{hub, "library/redis"}, Sum{Pulls: 1, Calls: 1}},
				{Key{"quay.io", "team/app"}, Sum{Calls: 1}},
			}},
			Clients: List{Lines: []Line{
				{Key{hub, "a"}, Sum{Requests: 1, Served: 1 << 20, Pulls: 1, Heads: 1, Calls: 2, Fetched: 1 << 20}},
				{Key{hub, "b"}, Sum{Requests: 3, Held: 2, Stale: 1, Failed: 1, Served: 1<<20 + 500, Saved: 1<<20 + 500, Pulls: 1, Calls: 1}},
				{Key{"quay.io", ""}, Sum{Calls: 1}},
			}},
		}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want.Upstreams.Lines, l.Totals()); diff != "" {
			t.Errorf("since the start (-want +got):\n%s", diff)
		}
		byName := []Line{want.Accounts.Lines[1], want.Accounts.Lines[0], want.Accounts.Lines[2]}
		if diff := cmp.Diff(byName, l.AccountTotals()); diff != "" {
			t.Errorf("accounts since the start (-want +got):\n%s", diff)
		}
	})
}

func TestOthersAreTheRest(t *testing.T) {
	l := New()
	var total Sum
	for i := range 20 {
		s := Sum{Pulls: int64(i + 1), Calls: 100}
		l.Spent(alpine(fmt.Sprintf("client%d", i)), s)
		total.add(s)
	}
	r := l.Report(1, 3)
	wantExact(t, r, total)
	var names []string
	for _, line := range r.Clients.Lines {
		names = append(names, line.Name)
	}
	if want := []string{"client19", "client18", "client17"}; !slices.Equal(names, want) {
		t.Errorf("the heaviest are %v, want %v", names, want)
	}
	if none := l.Report(1, 0); len(none.Clients.Lines) > 0 || len(none.Upstreams.Lines) != 1 || len(none.Accounts.Lines) != 1 {
		t.Errorf("without clients and repositories: %+v", none)
	}
}

// Ten thousand clients come by once each. Who spent more than one part in as many
// as there are rows is among them all the same, less what the bound allows, and
// no total is off.
func TestManyNamesHideNoSpender(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		r := rand.New(rand.NewPCG(1, 2))
		var total Sum
		spend := func(client string, s Sum) {
			l.Spent(alpine(client), s)
			total.add(s)
		}
		const spent = 10_000 / 50
		for i := range 10_000 {
			spend(fmt.Sprintf("stranger%d", i), Sum{Requests: 1, Pulls: int64(r.IntN(2)), Calls: 1, Fetched: 100})
			if i%50 == 0 {
				spend("spender", Sum{Pulls: 1, Calls: 1})
			}
		}
		report := l.Report(1, 1000)
		wantExact(t, report, total)
		if n := len(report.Clients.Lines); n != room(byClient) {
			t.Errorf("%d clients are remembered, want %d", n, room(byClient))
		}
		bound := total.weight() / float64(room(byClient))
		at := slices.IndexFunc(report.Clients.Lines, func(line Line) bool { return line.Name == "spender" })
		if at < 0 {
			t.Fatal("the spender is lost among strangers")
		}
		is, all := report.Clients.Lines[at].weight(), (&Sum{Pulls: spent, Calls: spent}).weight()
		if is > all || is < all-bound {
			t.Errorf("the spender weighs %v, want %v to %v", is, all-bound, all)
		}
	})
}

// Whoever takes a row inherits its rank, so that all ranks add up to what was posted
// and none is less than what its name weighs: that is what the bound above rests on.
func TestRanksAreInherited(t *testing.T) {
	b := newBook(2)
	weighs := map[string]float64{}
	for _, name := range []string{"a", "a", "b", "c", "d", "b", "a", "d", "d", "c"} {
		s := Sum{Requests: 1}
		b.post(Key{hub, name}, s)
		weighs[name] += s.weight()
	}
	ranks := 0.0
	for k, r := range b.rows {
		if ranks += r.rank; r.rank < weighs[k.Name] {
			t.Errorf("%s has rank %v and weighs %v", k.Name, r.rank, weighs[k.Name])
		}
	}
	if ranks != b.total.weight() {
		t.Errorf("all ranks are %v, want %v as was posted", ranks, b.total.weight())
	}
}

// What is scarce comes first: a pull before gigabytes that cost nothing, and what was
// asked of an upstream before what was served.
func TestWhatIsScarceIsHeavier(t *testing.T) {
	for _, row := range []struct {
		name         string
		heavy, light Sum
	}{
		{"a pull and a GiB that was held", Sum{Pulls: 1}, Sum{Requests: 100, Held: 100, Served: 1 << 30, Saved: 1 << 30}},
		{"a pull and many checks", Sum{Pulls: 1}, Sum{Heads: 100, Calls: 100}},
		{"a check and some hits", Sum{Heads: 1}, Sum{Requests: 10, Held: 10}},
		{"a call and some hits", Sum{Calls: 1}, Sum{Requests: 10, Held: 10}},
		{"bytes from upstream and as many that were held", Sum{Fetched: 1 << 30}, Sum{Served: 1 << 30}},
	} {
		l := New()
		l.Spent(alpine("light"), row.light)
		l.Spent(alpine("heavy"), row.heavy)
		if first := l.Report(1, 1).Clients.Lines[0].Name; first != "heavy" {
			t.Errorf("%s: first comes the %s one", row.name, first)
		}
	}
}

func TestReportsReachBackADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		for range 30 {
			l.Spent(alpine("a"), Sum{Pulls: 1})
			l.Served(hub, "library/alpine", "a", Held, 0, 1)
			l.Settle()
			time.Sleep(time.Hour)
		}
		l.Spent(alpine("a"), Sum{Heads: 1})
		for _, hours := range []int{1, 2, 6, Hours} {
			r := l.Report(hours, 10)
			n := int64(hours - 1)
			wantExact(t, r, Sum{Requests: n, Held: n, Served: n, Saved: n, Pulls: n, Heads: 1})
			if want := time.Now().Truncate(time.Hour).Add(-time.Duration(n) * time.Hour); !r.Since.Equal(want) {
				t.Errorf("the last %d hours begin at %v, want %v", hours, r.Since, want)
			}
		}
		if got := l.Totals()[0].Pulls; got != 30 {
			t.Errorf("%d pulls since the start, want 30", got)
		}
		time.Sleep(Hours * time.Hour)
		wantExact(t, l.Report(Hours, 10), Sum{})
	})
}

func TestNothingServedIsLostBesideSettling(t *testing.T) {
	l := New()
	var clients sync.WaitGroup
	const each, distinct = 3000, 3 * frontSize
	for client := range 4 {
		clients.Go(func() {
			for i := range each {
				l.Served(hub, fmt.Sprintf("repo%d", (client*each+i)%distinct), "c", Answer(i%2), 10*int64(1-i%2), 10*int64(i%2))
			}
		})
	}
	done := make(chan struct{})
	go func() {
		clients.Wait()
		close(done)
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
			l.Settle()
		}
	}
	wantExact(t, l.Report(2, 1000), Sum{Requests: 4 * each, Held: 2 * each, Served: 40 * each, Saved: 20 * each})
}

// A table that was replaced is looked after until nobody can have it any more.
func TestAnswerCountedInAReplacedTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		late := l.front.Load().find(hub, "library/alpine", "late")
		time.Sleep(time.Hour)
		l.Settle()
		if l.front.Load().find(hub, "library/alpine", "late") == late {
			t.Fatal("the table of the last hour is still in use")
		}
		for n := range int64(3) { // settled in between
			late.requests[Held].Add(1)
			time.Sleep(retirement / 4)
			wantExact(t, l.Report(1, 10), Sum{Requests: n + 1, Held: n + 1})
		}
		time.Sleep(retirement)
		l.Settle()
		if n := len(l.retired); n > 0 {
			t.Errorf("%d tables are kept for good", n)
		}
	})
}

// Names that meet at one place of the table take the way through the lock.
func TestNamesThatMeetAreToldApart(t *testing.T) {
	l := New()
	for i := range 3 * probes {
		l.Served(hub, fmt.Sprintf("repo%02d/the-same-ending", i), "c", Held, 0, 1)
	}
	r := l.Report(1, 100)
	wantExact(t, r, Sum{Requests: 3 * probes, Held: 3 * probes, Served: 3 * probes, Saved: 3 * probes})
	if n := len(r.Repositories.Lines); n != 3*probes {
		t.Errorf("%d repositories, want %d", n, 3*probes)
	}
}

// A name that is too long is cut between two characters: what is told is text.
func TestLongNamesAreCutAsText(t *testing.T) {
	l := New()
	l.Spent(Party{Upstream: hub, Account: strings.Repeat("ü", maxName), Client: "a" + strings.Repeat("ü", maxName)}, Sum{Pulls: 1})
	r := l.Report(1, 10)
	for _, line := range slices.Concat(r.Accounts.Lines, r.Clients.Lines, l.AccountTotals()) {
		if n := len(line.Name); n < maxName-1 || n > maxName || !utf8.ValidString(line.Name) {
			t.Errorf("%d bytes: %q", n, line.Name)
		}
	}
}

func TestSpendingOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		for i := range 2 * room(byClient) {
			l.Spent(alpine(fmt.Sprintf("client%d", i)), Sum{Pulls: 1, Fetched: int64(i)})
		}
		l.Spent(alpine(strings.Repeat("long", maxName)), Sum{Pulls: 1})
		time.Sleep(time.Hour)
		l.Served(hub, "library/alpine", "a", Held, 0, 7)
		before := l.Report(Hours, 1000)
		state, changed := l.Save()
		if !changed {
			t.Fatal("nothing to save")
		}
		if _, changed := l.Save(); changed {
			t.Error("the same is saved twice")
		}
		time.Sleep(time.Minute)
		again := New()
		if err := again.Load(state); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, again.Report(Hours, 1000)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
		again.Spent(alpine("newcomer"), Sum{Pulls: 1}) // the ranks are what they were
		before.Total.Pulls++
		wantExact(t, again.Report(Hours, 1000), before.Total)
		if totals := again.Totals(); len(totals) != 1 || totals[0].Pulls != 1 {
			t.Errorf("since the start, of a new process: %+v", totals)
		}
		time.Sleep(2 * Hours * time.Hour)
		if state, _ := again.Save(); strings.Contains(string(state), "client") {
			t.Errorf("what is too old to be told is saved: %.200s", state)
		}
	})
}

// A clock that was wrong for a while costs nothing but what it put in hours to
// come, which is told when they do.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New()
		l.Spent(alpine("a"), Sum{Pulls: 1})
		state, _ := l.Save()
		number := fmt.Sprint(hourOf(time.Now()))
		for _, row := range []struct {
			name  string
			ahead int64 // hours, of what was saved
			want  int64
		}{
			{"as it was", 0, 1},
			{"set forward an hour", -1, 1},
			{"set forward a day", -24, 0},
			{"set forward for years", -99_999, 0},
			{"set back an hour", 1, 0},
			{"set back for years", 99_999, 0},
		} {
			moved := strings.Replace(string(state), number, fmt.Sprint(hourOf(time.Now())+row.ahead), 1)
			again := New()
			if err := again.Load([]byte(moved)); err != nil {
				t.Fatal(err)
			}
			wantExact(t, again.Report(Hours, 10), Sum{Pulls: row.want})
			again.Spent(alpine("a"), Sum{Pulls: 10})
			wantExact(t, again.Report(Hours, 10), Sum{Pulls: row.want + 10})
			if row.ahead == 1 {
				time.Sleep(time.Hour)
				wantExact(t, again.Report(Hours, 10), Sum{Pulls: 11})
			}
		}
	})
}

func TestStatesThatAreNotBelieved(t *testing.T) {
	const total = `{"total":{}}`
	hourOf := func(books string) string { return `{"version":1,"hours":[{"hour":5,"books":[` + books + `]}]}` }
	rows := func(total, rows string) string {
		return hourOf(`{"total":` + total + `,"rows":[` + rows + `]},{"total":{}},{"total":{}},{"total":{}}`)
	}
	for _, row := range []struct{ name, state, want string }{
		{"empty", ``, "unexpected end"},
		{"torn", `{"version":1,"hours":[{"hour":5,`, "unexpected end"},
		{"foreign", `held 5`, "invalid character"},
		{"another version", `{"version":2,"hours":[]}`, "version 2"},
		{"no version", `{}`, "version 0"},
		{"books that are missing", hourOf(total), "1 books"},
		{"books that do not agree", hourOf(total + `,` + total + `,` + total + `,{"total":{"fetched":1}}`), "not that of another"},
		{"an account that was served", hourOf(total + `,{"total":{"served":1}},` + total + `,` + total), "not that of another"},
		{"rows that are more than the total", rows(`{"pulls":1}`, `{"upstream":"a","pulls":2}`), "total"},
		{"a total that is too large", rows(`{"pulls":72057594037927937}`, ``), "total"},
		{"less than nothing", rows(`{"pulls":1}`, `{"upstream":"a","pulls":-2},{"upstream":"b","pulls":3}`), "impossible"},
		{"a rank below zero", rows(`{"pulls":1}`, `{"upstream":"a","pulls":1,"rank":-1}`), "impossible"},
		{"a name without end", rows(`{"pulls":2}`, `{"upstream":"`+strings.Repeat("a", maxName+1)+`","pulls":1}`), "too long"},
		{"too many rows", rows(`{}`, strings.Repeat(`{"upstream":"a"},`, room(byUpstream))+`{"upstream":"a"}`), "rows"},
	} {
		l := New()
		if err := l.Load([]byte(row.state)); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", row.name, err, row.want)
		}
		wantExact(t, l.Report(Hours, 10), Sum{})
	}
}

// Whatever stands in the file, sums stay exact, and what is saved is believed.
func FuzzLoad(f *testing.F) {
	l := New()
	l.Spent(alpine("a"), Sum{Pulls: 1, Calls: 2, Fetched: 1000})
	l.Served(hub, "library/alpine", "b", Held, 0, 7)
	state, _ := l.Save()
	f.Add(state)
	f.Add(state[:len(state)/2])
	f.Add([]byte(`{"version":1,"hours":[{"hour":-9223372036854775808,"books":[]}]}`))
	f.Fuzz(func(t *testing.T, state []byte) {
		l := New()
		if l.Load(state) != nil {
			wantExact(t, l.Report(Hours, 5), Sum{})
			return
		}
		l.Spent(alpine("newcomer"), Sum{Pulls: 1})
		r := l.Report(Hours, 5)
		wantExact(t, r, r.Total)
		if !r.Total.isPossible() && r.Total.Pulls < maxSum {
			t.Errorf("total %+v", r.Total)
		}
		saved, _ := l.Save()
		again := New()
		if err := again.Load(saved); err != nil {
			t.Errorf("what was saved is not believed: %v", err)
		}
		if diff := cmp.Diff(r, again.Report(Hours, 5)); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
}
