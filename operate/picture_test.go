package operate

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"entrepot/admin"
	"entrepot/ledger"
	"entrepot/oci"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "take the picture as it is now")

func exampleStatus() admin.Status {
	now := time.Date(2026, 11, 25, 14, 3, 27, 0, time.UTC)
	const gib = 1 << 30
	line := func(upstream, name string, sum ledger.Sum) admin.Spender {
		return admin.Spender{Upstream: upstream, Name: name, Sum: sum}
	}
	return admin.Status{
		Version: "v1.2.3", Data: "/var/lib/entrepot", Since: now.Add(-75 * time.Hour), Now: now, Offline: []string{"registry.k8s.io"},
		Unread: []admin.Unread{{What: "rights", Error: "not an access file: line 3: mapping values are not allowed here", Settings: []string{"ENTREPOT_ACCESS_FILE=/etc/entrepot/rights.yaml"}, Since: now.Add(-192 * time.Second)}},
		Breakers: []admin.Breaker{
			{Upstream: "docker.io", Host: "registry-1.docker.io", State: "closed"},
			{Upstream: "docker.io", Host: "auth.docker.io", State: "closed", Failures: 2, Failed: now.Add(-40 * time.Second), Error: "unavailable: auth.docker.io: no answer in time"},
			{Upstream: "ghcr.io", Host: "ghcr.io", State: "closed"},
			{Upstream: "ghcr.io", Host: "ghcr.io", Part: "/v2/an-owner-with-a-name/tests/manifests/latest", State: "open", Since: now.Add(-10 * time.Second), Failures: 3, Refused: 2, Error: "unavailable: ghcr.io: no answer in time", Next: now.Add(5 * time.Second)},
			{Upstream: "ghcr.io", Host: "ghcr.io", Part: "/v2/another-owner/of/tests/manifests/" + oci.Sum(nil).String(), State: "probing", Since: now.Add(-10 * time.Second), Failures: 3},
			{Upstream: "mcr.microsoft.com", Host: "mcr.microsoft.com", State: "closed", Failures: 1, Failed: now.Add(-time.Hour), Error: "unavailable: mcr.microsoft.com: it cannot be reached"},
			{Upstream: "quay.io", Host: "quay.io", State: "open", Since: now.Add(-190 * time.Second), Failures: 9, Refused: 31, Error: "unavailable: quay.io: it cannot be reached: 192.0.2.1:443 refuses the connection", Next: now.Add(12 * time.Second)},
			{Upstream: "public.ecr.aws", Host: "public.ecr.aws", State: "closed", Paused: now.Add(25 * time.Second), Remedy: "an account there has limits of its own: ENTREPOT_UPSTREAM_<n>_USERNAME"},
			{Upstream: "gcr.io", Host: "gcr.io", State: "probing", Since: now.Add(-2 * time.Second), Failures: 3, Refused: 1},
		},
		Logins: []admin.Login{
			{Upstream: "docker.io", Host: "auth.docker.io", Account: "bot", Setting: "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD_FILE=/run/secrets/bot, for team/*", Since: now.Add(-20 * time.Minute), Next: now.Add(5 * time.Minute)},
		},
		Quotas: []admin.Quota{
			{Upstream: "docker.io", Account: "", Limit: 100, Left: 7, Reserve: 10, Resets: now.Add(2*time.Hour + 10*time.Minute), Remedy: "an account there has limits of its own: ENTREPOT_DOCKERHUB_USERNAME"},
			{Upstream: "docker.io", Account: "team-with-a-very-long-name", Limit: 200, Left: 134, Resets: now.Add(95 * time.Second), Exact: true},
			{Upstream: "docker.io", Account: "spent", Limit: 200, Left: 0, Reserve: 10, Resets: now.Add(5*time.Hour + 52*time.Minute), Paused: now.Add(17 * time.Second)},
			{Upstream: "ghcr.io", Account: "me", Limit: 5000, Left: -1},
		},
		Spent: admin.Spent{
			Hours: 6, Since: now.Add(-5 * time.Hour),
			Total: ledger.Sum{Requests: 120_345, Held: 120_344, Stale: 70, Failed: 1200, Denied: 20, Limited: 150, Served: 13 * gib, Saved: 12 * gib, Pulls: 61, Heads: 310, Calls: 900, Fetched: gib},
			Upstreams: admin.Spenders{Lines: []admin.Spender{
				line("docker.io", "", ledger.Sum{Requests: 120_000, Held: 119_000, Stale: 70, Served: 12 * gib, Saved: 11 * gib, Pulls: 61, Heads: 310, Calls: 890, Fetched: gib}),
				line("ghcr.io", "", ledger.Sum{Requests: 345, Held: 345, Served: gib, Saved: gib}),
				line("quay.io", "", ledger.Sum{Requests: 1200, Failed: 1200, Denied: 20, Limited: 150, Calls: 10}),
			}},
			Accounts: admin.Spenders{Lines: []admin.Spender{
				line("docker.io", "spent", ledger.Sum{Pulls: 60, Heads: 300, Calls: 400, Fetched: gib}),
				line("docker.io", "", ledger.Sum{Pulls: 1, Heads: 10, Calls: 490}),
			}},
			Repositories: admin.Spenders{
				Lines:  []admin.Spender{line("docker.io", "library/alpine", ledger.Sum{Requests: 9000, Held: 8990, Served: gib, Saved: gib, Pulls: 3}), line("docker.io", "team-of-the-fourth-floor/builder-image", ledger.Sum{Requests: 1, Served: 10, Pulls: 1, Fetched: 10})},
				Others: ledger.Sum{Requests: 100_000, Held: 99_000, Served: 11 * gib, Saved: 10 * gib, Pulls: 57, Heads: 310, Fetched: gib},
			},
			Clients: admin.Spenders{Lines: []admin.Spender{
				line("docker.io", "192.0.2.71", ledger.Sum{Requests: 9001, Held: 8990, Served: gib, Saved: gib, Pulls: 4, Fetched: 10}),
				line("docker.io", "2001:db8:85a3:8d3:1319:8a2e:370:7348", ledger.Sum{Requests: 2_000_000_000, Held: 2, Served: 20 * gib, Saved: gib}),
				line("docker.io", "", ledger.Sum{Heads: 20}),
				line("quay.io", "192.0.2.71", ledger.Sum{Calls: 10}),
			}},
		},
		Fills: []admin.Fill{
			{Repository: "docker.io/library/python", Digest: oci.Sum([]byte("1")), Size: 600 << 20, Landed: 420 << 20, BytesPerSecond: 52 << 20, Readers: 3, Streams: 4},
			{Repository: "ghcr.io/x/y\x1b[2J", Digest: oci.Sum([]byte("2")), Size: -1, Landed: 1 << 20, Readers: 1, Streams: 1, Began: now.Add(-45 * time.Second), Came: now.Add(-12 * time.Second), Trouble: admin.Stalled},
			{Repository: "ghcr.io/x/z", Digest: oci.Sum([]byte("3")), Size: 300 << 20, Landed: 20 << 10, BytesPerSecond: 211, Readers: 1, Streams: 1, Began: now.Add(-95 * time.Second), Came: now.Add(-time.Second), Trouble: admin.Slow},
		},
		Waiting: []admin.Waiting{{Upstream: "gcr.io", Questions: 3, Since: now.Add(-12 * time.Second)}},
		Disk:    admin.Disk{Held: 34 * gib, Budget: 40 * gib, Free: 120 * gib},
		Memory:  admin.Memory{Held: 12 << 20, Budget: 64 << 20, Process: 45 << 20},
		Warm:    map[string]int{"warm": 112, "missing": 1, "waiting": 15, "failed": 2},

		WarmError: `":x": the name is empty (line 3 of file "/var/lib/configuration-of-the-caches/entrepot/warm/images-of-the-fourth-floor-and-others.txt", and 1 line more)`,
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

// The picture as it was last looked at; -update takes it as it is now.
func TestStatusPicture(t *testing.T) {
	p := picture{width: plainWidth}
	p.draw(exampleStatus(), "http://127.0.0.1:5001")
	got := strings.Join(p.fit(0), "\n") + "\n"
	const file = "testdata/status.golden"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever is shown, no line is wider than the terminal, nothing of a stranger's
// reaches it as a command, and colour changes no letter.
func TestStatusPictureFits(t *testing.T) {
	for _, s := range []admin.Status{exampleStatus(), {}} {
		for _, width := range []int{1, 40, 80, 120} {
			var plain []string
			for _, colour := range []bool{false, true} {
				p := picture{width: width, colour: colour}
				p.draw(s, "http://127.0.0.1:5001")
				var bare []string
				for _, line := range p.fit(0) {
					line = escapes.ReplaceAllString(line, "")
					bare = append(bare, strings.TrimRight(line, " "))
					if n := utf8.RuneCountInString(line); n > width {
						t.Errorf("%d columns in %d: %s", n, width, line)
					}
					if strings.Contains(line, "\x1b") {
						t.Errorf("a command to the terminal: %q", line)
					}
				}
				if !colour {
					plain = bare
				} else if diff := cmp.Diff(plain, bare); diff != "" {
					t.Errorf("colour changes letters (-without +with):\n%s", diff)
				}
			}
		}
	}
}

// Text that is longer than a line goes on in the next ones, at words where there are
// any.
func TestTextIsFolded(t *testing.T) {
	for _, row := range []struct {
		text               string
		first, width, most int
		want               []string
	}{
		{"", 5, 10, 3, []string{""}},
		{"one two", 7, 10, 3, []string{"one two"}},
		{"one two", 6, 10, 3, []string{"one", "two"}},
		{"one two", 2, 10, 3, []string{"", "one two"}},
		{"one two three", 5, 5, 2, []string{"one", "two three"}},
		{"a /long/path/of/a/file", 10, 8, 9, []string{"a", "/long/pa", "th/of/a/", "file"}},
		{"nö wäy", 3, 3, 9, []string{"nö", "wäy"}},
		{"ab", -1, 0, 9, []string{"", "a", "b"}},
		{"a\x1b[2J", 9, 9, 9, []string{"a?[2J"}},
	} {
		if got := fold(row.text, row.first, row.width, row.most); !slices.Equal(got, row.want) {
			t.Errorf("%q in %d and %d: %q, want %q", row.text, row.first, row.width, got, row.want)
		}
	}
}

// On a narrow terminal bars and names are cut before numbers are.
func TestQuotasFitNarrowTerminals(t *testing.T) {
	for width, want := range map[int]string{
		80: "docker.io (our address)   █░░░░░░░░░░░░░░░░░░░    7 of 100      10       ≤ 2h10m",
		70: "docker.io (our address)   █░░░░░░░░░    7 of 100      10       ≤ 2h10m",
		60: "docker.i… address)  ░░░░░░    7 of 100      10       ≤ 2h10m",
		54: "docke…dress)  ░░░░░░    7 of 100      10       ≤ 2h10m",
	} {
		p := picture{width: width}
		p.quotas(exampleStatus())
		if got := p.fit(0)[1]; got != want {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
	}
}

// A small terminal shows what is wrong now and what room there is, a row of each
// part before a second of any, and says what it does not show.
func TestStatusPictureFitsItsHeight(t *testing.T) {
	for _, size := range []struct {
		width, height int
		has           []string
		missing       string // the last line
	}{
		{120, 100, []string{"QUOTA", "HOSTS", "ON THEIR WAY", "LAST 6 HOURS", "ACCOUNTS", "CLIENTS", "REPOSITORIES", "DISK", "MEMORY", "WARM", "and 4 more"}, ""},
		{120, 39, []string{"QUOTA", "HOSTS", "ON THEIR WAY", "LAST 6 HOURS", "ACCOUNTS", "CLIENTS", "REPOSITORIES", "DISK", "MEMORY", "WARM"}, "no room for "},
		{80, 23, []string{"QUOTA", "HOSTS", "ON THEIR WAY", "LAST 6 HOURS", "DISK", "MEMORY", "WARM"}, "no room for 2 of QUOTA, 8 of HOSTS, 3 of LAST 6 HOURS, ACCOUNTS, CLIENTS, REPOS…"},
		{60, 14, []string{"QUOTA", "HOSTS", "DISK", "MEMORY", "WARM"}, "no room for "},
		{40, 3, []string{"Entrepôt"}, "no room for "},
	} {
		t.Run(fmt.Sprintf("%dx%d", size.width, size.height), func(t *testing.T) {
			s := exampleStatus()
			s.Unread, s.WarmError = nil, ""
			for i := range maxFills + 1 {
				s.Fills = append(s.Fills, admin.Fill{Repository: "docker.io/library/more", Digest: oci.Sum([]byte{byte(i)}), Size: 10})
			}
			p := picture{width: size.width}
			p.draw(s, "http://127.0.0.1:5001")
			lines := p.fit(size.height)
			all := strings.Join(lines, "\n")
			if len(lines) > size.height {
				t.Errorf("%d lines", len(lines))
			}
			for _, want := range size.has {
				if !strings.Contains(all, want) {
					t.Errorf("no %s", want)
				}
			}
			if last := lines[len(lines)-1]; !strings.HasPrefix(last, size.missing) {
				t.Errorf("the last line is %q, want %q", last, size.missing)
			}
			t.Log("\n" + all)
		})
	}
}

// On a terminal each picture stands over the last one, and keeps inside it.
func TestStatusIsRedrawnInPlace(t *testing.T) {
	var out bytes.Buffer
	w := &statusWatch{o: &operation{in: Invocation{Stdout: &out}}, interval: time.Second}
	for range 2 {
		if err := w.put([]string{"a", "b"}, true); err != nil {
			t.Fatal(err)
		}
	}
	const picture = "\x1b[Ha\x1b[K\nb\x1b[K\n\x1b[J"
	if got, want := out.String(), "\x1b[2J"+picture+picture; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestRatesAreCurrentWhileWatched(t *testing.T) {
	first := exampleStatus()
	second := exampleStatus()
	second.Now = first.Now.Add(2 * time.Second)
	second.Fills[0].Landed += 10 << 20
	shown := withCurrentRates(first, second)
	if got := shown.Fills[0].BytesPerSecond; got != 5<<20 {
		t.Errorf("10 MiB in 2 s are %d a second", got)
	}
	if got := withCurrentRates(admin.Status{}, second).Fills[0].BytesPerSecond; got != 52<<20 {
		t.Errorf("at first the mean rate is shown, and not %d", got)
	}
}

// A host is one thing that is in trouble, however many of its parts are; what failed
// once is forgotten, and what makes one worry is red.
func TestHostsInTrouble(t *testing.T) {
	now := time.Date(2026, 11, 25, 14, 3, 27, 0, time.UTC)
	const long = "localhost:40123"
	up := func(host string) admin.Breaker {
		return admin.Breaker{Upstream: "a.example", Host: host, State: "closed"}
	}
	part := func(host, path string) admin.Breaker {
		return admin.Breaker{Upstream: "a.example", Host: host, Part: path, State: "open", Since: now, Failures: 3}
	}
	token := func(repo string, refused int) admin.Breaker {
		b := part(long, "/token")
		b.Repo, b.Refused = "library/"+repo, refused
		return b
	}
	failed := func(ago time.Duration) admin.Breaker {
		b := up("a.example")
		b.Failures, b.Failed = 1, now.Add(-ago)
		return b
	}
	for name, row := range map[string]struct {
		breakers []admin.Breaker
		colour   style
		want     []string // lines, the first of them the heading
	}{
		"none":               {[]admin.Breaker{up("a.example"), up("b.example")}, green, []string{"HOSTS  0 of 2 in trouble"}},
		"failed a while ago": {[]admin.Breaker{failed(shakyFor)}, green, []string{"HOSTS  0 of 1 in trouble"}},
		"failed just now":    {[]admin.Breaker{failed(shakyFor - time.Second)}, yellow, []string{"HOSTS  1 of 1 in trouble", "shaky 1 failed in a row, 4m59s ago"}},
		"parts of one host": {
			[]admin.Breaker{up(long), part(long, "/v2/first/tests/manifests/latest"), part(long, "/v2/other/tests/manifests/latest"), part(long, "team/repository")},
			red,
			[]string{"HOSTS  1 of 1 in trouble", "  " + long + "         3 parts of it do not answer", "    first/tests:latest", "    other/tests:latest", "    team/repository"},
		},
		"a part alone": {[]admin.Breaker{part("cdn.example", "/signed/blob")}, red, []string{"HOSTS  1 of 1 in trouble", "  cdn.example             1 part of it does not answer", "    /signed/blob"}},
		"a host and its part": {
			[]admin.Breaker{{Upstream: "a.example", Host: "a.example", State: "open", Since: now, Failures: 3}, part("a.example", "/v2/x/blobs/"+oci.Sum(nil).String())},
			red,
			[]string{"HOSTS  1 of 1 in trouble", "  a.example               down for 0s\n    and 1 part of it"},
		},
		"tokens of a host that is down": {
			[]admin.Breaker{{Upstream: "a.example", Host: long, State: "open", Since: now, Failures: 3, Error: "unavailable: " + long + ": no answer in time"}, token("q1", 0), token("q2", 0), token("q3", 0)},
			red,
			[]string{"HOSTS  1 of 1 in trouble", "down for 0s\n    a.example: no answer in time\n    and 3 parts of it"},
		},
		"more parts than anybody reads": {
			[]admin.Breaker{up(long), token("q1", 0), token("q2", 0), token("q3", 2), token("q4", 1), token("q5", 9), token("q6", 0)},
			red,
			[]string{
				"HOSTS  1 of 1 in trouble",
				"6 parts of it do not answer\n    library/q5, by /token\n      down for 0s, 9 requests held back\n    library/q3, by /token",
				"    library/q4, by /token\n      down for 0s, 1 request held back\n    library/q1, by /token\n      down for 0s\n    and 2 more",
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, colour := range []bool{false, true} {
				p := picture{width: plainWidth, colour: colour}
				p.hosts(admin.Status{Now: now, Breakers: row.breakers})
				all := strings.Join(p.fit(0), "\n")
				if colour {
					if want := "\x1b[" + string(row.colour) + "m" + strings.TrimPrefix(row.want[0], "HOSTS  "); !strings.Contains(all, want) {
						t.Errorf("no %q in\n%q", want, all)
					}
					continue
				}
				for _, want := range row.want {
					if !strings.Contains(all, want) {
						t.Errorf("no %q in\n%s", want, all)
					}
				}
			}
		})
	}
}
