package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"entrepot/admin"
	"entrepot/internal/ocitest"
	"entrepot/ledger"

	"github.com/google/go-cmp/cmp"
)

// clientAt is a client that asks from an address of this machine.
func clientAt(t *testing.T, address string) *http.Client {
	t.Helper()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{DialContext: dialer.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// operatorOf asks the server p.
func operatorOf(t *testing.T, p *program) operator {
	t.Helper()
	return operator{t, environ("ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_ADMIN_LISTEN="+strings.TrimPrefix(p.admin, "http://"))}
}

func (o operator) status(args ...string) admin.Status {
	o.t.Helper()
	var s admin.Status
	var stdout bytes.Buffer
	if err := run(o.t.Context(), append([]string{"status", "--json"}, args...), o.environ, &stdout, io.Discard); err != nil {
		o.t.Fatal(err)
	}
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil {
		o.t.Fatal(err)
	}
	return s
}

// statusAfter is the status once so many requests of clients were answered: a
// client may have its last byte a moment before that is counted.
func (o operator) statusAfter(requests int64) admin.Status {
	o.t.Helper()
	for {
		if s := o.status(); s.Spent.Total.Requests >= requests || o.t.Context().Err() != nil {
			return s
		}
	}
}

// Two clients pull, one of them what the other had: status tells who spent what,
// and that is what the hub saw.
func TestStatusTellsWhoSpentIt(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{PullLimit: 100}})
	hub.AddUser("robot", "hunter2")
	one, two := ocitest.RandomImage(1, 2_000_000, 300), ocitest.RandomImage(2, 50_000)
	hub.Push("library/one", "1", one)
	hub.Push("team/two", "1", two)
	settings := []string{
		"ENTREPOT_DATA=" + t.TempDir(), "ENTREPOT_PREFETCH=false", "ENTREPOT_CACHE_SIZE=1GiB",
		"ENTREPOT_DOCKERHUB_USERNAME=robot", "ENTREPOT_DOCKERHUB_PASSWORD=hunter2",
	}
	p := startProgram(t, hub, settings...)
	alice, bob := clientAt(t, "127.0.0.2"), clientAt(t, "127.0.0.3")
	p.pull(t, alice, "library/one", "1", one)
	awaitNoFills(t, alice, p.admin)
	p.pull(t, bob, "library/one", "1", one)
	p.pull(t, bob, "team/two", "1", two)
	awaitNoFills(t, bob, p.admin)
	requests := func(images ...ocitest.Image) (n int64) {
		for _, image := range images {
			n += int64(1 + len(image.Blobs))
		}
		return n
	}
	size := func(image ocitest.Image) (n int64) {
		for _, blob := range image.Blobs {
			n += blob.Size
		}
		return n + image.Size
	}
	s := operatorOf(t, p).statusAfter(2*requests(one) + requests(two))

	var seen ledger.Sum
	for _, r := range hub.Requests() {
		seen.Calls++
		if r.Counted {
			seen.Pulls++
		}
		if r.Kind == ocitest.Manifest && r.Method == http.MethodHead && r.Status == http.StatusOK {
			seen.Heads++
		}
		if (r.Kind == ocitest.Manifest || r.Kind == ocitest.BlobKind) && r.Status == http.StatusOK {
			seen.Fetched += r.Sent
		}
	}
	total := ledger.Sum{
		Requests: 2*requests(one) + requests(two), Held: requests(one), Served: 2*size(one) + size(two), Saved: size(one),
		Pulls: 2, Heads: 2, Calls: seen.Calls, Fetched: size(one) + size(two),
	}
	if diff := cmp.Diff(total, s.Spent.Total); diff != "" {
		t.Errorf("in all (-want +got):\n%s", diff)
	}
	seen.Requests, seen.Held, seen.Served, seen.Saved = total.Requests, total.Held, total.Served, total.Saved
	if diff := cmp.Diff(seen, s.Spent.Total); diff != "" {
		t.Errorf("in all (-what the hub saw +got):\n%s", diff)
	}
	wantLines := func(what string, list admin.Spenders, want map[string]ledger.Sum) {
		t.Helper()
		got := map[string]ledger.Sum{}
		for _, line := range list.Lines {
			line.Calls = 0 // tokens: by whom first
			got[line.Upstream+" "+line.Name] = line.Sum
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", what, diff)
		}
		if list.Others != (ledger.Sum{}) {
			t.Errorf("others of %s: %+v", what, list.Others)
		}
	}
	wantLines("clients", s.Spent.Clients, map[string]ledger.Sum{
		"docker.io 127.0.0.2": {Requests: requests(one), Served: size(one), Pulls: 1, Heads: 1, Fetched: size(one)},
		"docker.io 127.0.0.3": {Requests: requests(one, two), Held: requests(one), Served: size(one) + size(two), Saved: size(one), Pulls: 1, Heads: 1, Fetched: size(two)},
	})
	wantLines("repositories", s.Spent.Repositories, map[string]ledger.Sum{
		"docker.io library/one": {Requests: 2 * requests(one), Held: requests(one), Served: 2 * size(one), Saved: size(one), Pulls: 1, Heads: 1, Fetched: size(one)},
		"docker.io team/two":    {Requests: requests(two), Served: size(two), Pulls: 1, Heads: 1, Fetched: size(two)},
	})
	wantLines("accounts", s.Spent.Accounts, map[string]ledger.Sum{
		"docker.io robot": {Pulls: 2, Heads: 2, Fetched: size(one) + size(two)},
		"docker.io ":      {}, // the requests that were told to sign in
	})
	if q := s.Quotas; len(q) != 1 || q[0].Account != "robot" || q[0].Limit != 100 || q[0].Left != 98 || q[0].WindowSeconds != 21600 {
		t.Errorf("quotas: %+v", q)
	}
	if s.Disk.Held < size(one)+size(two) || s.Disk.Budget != 1<<30 || s.Disk.Free == 0 || s.Memory.Process == 0 || len(s.Fills) > 0 {
		t.Errorf("disk %+v, memory %+v, fills %+v", s.Disk, s.Memory, s.Fills)
	}
	_, scrape, _ := get(t, alice, p.admin+"/metrics")
	for _, want := range []string{"pulls_total{account=\"robot\",upstream=\"docker.io\"} 2\n", "heads_total{account=\"robot\",upstream=\"docker.io\"} 2\n", "pulls_total{account=\"\",upstream=\"docker.io\"} 0\n", "breakers_open{upstream=\"docker.io\"} 0\n"} {
		if !strings.Contains(scrape, "\nentrepot_"+want) {
			t.Errorf("no %q in the metrics", want)
		}
	}

	// A restart forgets nothing; a foreign file is left behind, with a word.
	stopProgram(t, p)
	p = startProgram(t, hub, settings...)
	if diff := cmp.Diff(s.Spent, operatorOf(t, p).status().Spent); diff != "" {
		t.Errorf("after a restart (-before +after):\n%s", diff)
	}
	stopProgram(t, p)
	state := filepath.Join(strings.TrimPrefix(settings[0], "ENTREPOT_DATA="), "state", "ledger")
	if info, err := os.Stat(state); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("who spent what can be read by others: %v, %v", info, err)
	}
	if err := os.WriteFile(state, []byte(`{"version":99}`), 0o644); err != nil {
		t.Fatal(err)
	}
	p = startProgram(t, hub, settings...)
	if got := operatorOf(t, p).status().Spent.Total; got != (ledger.Sum{}) {
		t.Errorf("from a foreign file: %+v", got)
	}
	if !strings.Contains(p.log.String(), "version 99") {
		t.Errorf("nothing is said of the foreign file:\n%s", p.log)
	}
}

// A blob on its way, and an upstream that goes away.
func TestStatusTellsWhatGoesOn(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	p := startProgram(t, hub)
	o := operatorOf(t, p)
	h := holdBlob(t, p, hub)
	fills := o.status().Fills
	if len(fills) != 1 {
		t.Fatalf("%d fills, want 1", len(fills))
	}
	f := fills[0]
	if f.Repository != "docker.io/library/slow" || f.Client != "127.0.0.1" || f.Size != 400_000 || f.Landed < 1000 || f.Landed > 200_000 || "http://"+f.From != hub.URL() || f.Readers != 1 || f.Streams != 1 {
		t.Errorf("fill: %+v", f)
	}
	wantLines(t, o.must("status", "--table"), `ON THEIR WAY .*`, `docker.io/library/slow +`+f.Digest.Hex()[:6]+` [█░]{7} +\d\S*% +391KiB .* 1 +1`)
	h.gate.Open()
	if err := <-h.result; err != nil {
		t.Error(err)
	}
	hub.Close()
	client := newClient(t)
	for range 5 {
		get(t, client, p.registry+"/v2/library/other/manifests/1")
	}
	breakers := o.status().Breakers
	if len(breakers) != 2 { // the registry and its token service
		t.Fatalf("breakers: %+v", breakers)
	}
	for _, b := range breakers {
		isRegistry := hub.URL() == "http://"+b.Host // no token is asked for while that is down
		if b.State == "closed" || b.Since.IsZero() || (b.Refused > 0) != isRegistry || b.Error == "" {
			t.Errorf("breaker: %+v", b)
		}
	}
	wantLines(t, o.must("status", "--table"), `HOSTS  2 of 2 in trouble`, `  localhost:\d+ +down for \d+s, \d requests? held back, .*`)
	if _, scrape, _ := get(t, client, p.admin+"/metrics"); !strings.Contains(scrape, "\nentrepot_breakers_open{upstream=\"docker.io\"} 2\n") {
		t.Error("the metrics know of no open breakers")
	}
}

// What hangs is seen while it does: a request that upstream does not answer, and a blob
// of which no more comes.
func TestStatusTellsWhatHangs(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	image := ocitest.RandomImage(1, 400_000)
	hub.Push("library/app", "1", image)
	p := startProgram(t, hub, "ENTREPOT_PREFETCH=off")
	client, o := newClient(t), operatorOf(t, p)
	await := func(what string, seen func(admin.Status) bool) admin.Status {
		t.Helper()
		for {
			s := o.status()
			if seen(s) {
				return s
			}
			if err := t.Context().Err(); err != nil {
				t.Fatal(what)
			}
		}
	}
	hang := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Reference: "1"}, Effect: ocitest.Hang()})
	leaving, leave := context.WithCancel(t.Context())
	var work sync.WaitGroup
	ask := func(path string) {
		work.Go(func() {
			req, err := http.NewRequestWithContext(leaving, http.MethodGet, p.registry+"/v2/app/"+path, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if resp, err := client.Do(req); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	ask("manifests/1")
	s := await("nobody waits", func(s admin.Status) bool { return len(s.Waiting) > 0 })
	if w := s.Waiting[0]; len(s.Waiting) != 1 || w.Upstream != "docker.io" || w.Questions != 1 || w.Since.IsZero() {
		t.Errorf("waiting: %+v", s.Waiting)
	}
	wantLines(t, o.must("status", "--table"), `  docker.io +1 request unanswered, the oldest for \d+s`)
	hang.Remove()

	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: ocitest.Stall(100_000)})
	ask("blobs/" + image.Blobs[1].Digest.String())
	s = await("nothing comes", func(s admin.Status) bool { return len(s.Fills) > 0 && s.Fills[0].Landed > 0 })
	if f := s.Fills[0]; f.Came.Before(f.Began) || f.Came.After(s.Now) {
		t.Errorf("bytes came last at %v, between %v and %v", f.Came, f.Began, s.Now)
	}
	leave()
	work.Wait()
}

// In an outage status tells what clients get: what is held, as stale, and errors for
// the rest. A 404, and a client that is to say who it is, are no trouble.
func TestStatusTellsWhatClientsGet(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 1000)
	hub.Push("library/app", "1", image)
	hub.Push("team/secret", "1", image)
	hub.Private("team/secret", "somebody")
	p := startProgram(t, hub, "ENTREPOT_TAG_TTL=0s")
	client, o := newClient(t), operatorOf(t, p)
	p.pull(t, client, "library/app", "1", image)
	awaitNoFills(t, client, p.admin)
	ask := func(image string, want int) {
		t.Helper()
		if status, body, _ := get(t, client, p.registry+"/v2/"+strings.Replace(image, ":", "/manifests/", 1)); status != want {
			t.Errorf("%s: %d %s, want %d", image, status, body, want)
		}
	}
	ask("library/app:2", http.StatusNotFound)
	before := o.statusAfter(int64(1 + len(image.Blobs))).Spent.Total
	if before.Stale != 0 || before.Failed != 0 {
		t.Errorf("while all is well: %+v", before)
	}
	ask("team/secret:1", http.StatusForbidden)
	hub.Close()
	const stale, failed = 3, 5
	for range stale {
		ask("library/app:1", http.StatusOK)
	}
	for range failed {
		ask("library/other:1", http.StatusServiceUnavailable)
	}
	after := o.statusAfter(before.Requests + 1 + stale + failed).Spent
	got := ledger.Sum{Requests: after.Total.Requests - before.Requests, Held: after.Total.Held - before.Held, Stale: after.Total.Stale, Failed: after.Total.Failed, Denied: after.Total.Denied}
	if diff := cmp.Diff(ledger.Sum{Requests: 1 + stale + failed, Held: stale, Stale: stale, Failed: 1 + failed, Denied: 1}, got); diff != "" {
		t.Errorf("in the outage (-want +got):\n%s", diff)
	}
	if line := after.Clients.Lines[0]; line.Stale != stale || line.Failed != 1+failed || line.Served != line.Saved+before.Served-before.Saved {
		t.Errorf("the client: %+v", line)
	}
	wantLines(t, o.must("status", "--table"), `  of the requests 3 stale, 1 denied, 5 in trouble`)
}

func TestStatusNeedsAServer(t *testing.T) {
	p, _, server, rest := heldWorld(t)
	server.refused(2, []string{"--hours: want a number from 1 to 24"}, "status", "--hours", "25")
	server.refused(2, []string{"--top: want a number from 0 to 100"}, "status", "--top", "-1")
	server.refused(2, []string{`it takes no argument, and not "5s"`}, "status", "5s")
	server.refused(2, []string{`"5" is no interval`}, "status", "--watch", "5")
	server.refused(2, []string{`"1ms" is no interval`}, "status", "--watch=1ms")
	stopProgram(t, p)
	rest.refused(1, []string{"only a running server", "ENTREPOT_ADMIN_LISTEN is empty", "start one, or name one by --server"}, "status")
	server.refused(1, []string{"only a running server", "connection refused"}, "status", "--watch")
}

// lineWriter ends a command after some lines.
type lineWriter struct {
	bytes.Buffer
	left int
	end  context.CancelFunc
}

func (w *lineWriter) Write(p []byte) (int, error) {
	if w.left -= bytes.Count(p, []byte("\n")); w.left <= 0 {
		w.end()
	}
	return w.Buffer.Write(p)
}

func TestStatusWatched(t *testing.T) {
	_, _, server, _ := heldWorld(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &lineWriter{left: 3, end: cancel}
	if err := run(ctx, []string{"status", "--watch", "100ms"}, server.environ, out, io.Discard); err != nil {
		t.Errorf("ended by its person: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines, want 3", len(lines))
	}
	for _, line := range lines {
		var s admin.Status
		if err := json.Unmarshal([]byte(line), &s); err != nil || s.Since.IsZero() {
			t.Errorf("%v in %s", err, line)
		}
	}
}

func TestColourIsForThoseWhoWantIt(t *testing.T) {
	for _, row := range []struct {
		environ []string
		want    bool
	}{
		{[]string{"TERM=xterm"}, true},
		{nil, true},
		{[]string{"NO_COLOR="}, true},
		{[]string{"NO_COLOR=1"}, false},
		{[]string{"TERM=dumb"}, false},
	} {
		if got := wantsColour(row.environ); got != row.want {
			t.Errorf("%v: %v", row.environ, got)
		}
	}
}

// Who logs in spends under a name, at whatever address, of what upstreams sent as
// well as of what was served.
func TestUsersSpendByName(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	image := ocitest.RandomImage(1, 3000, 300)
	hub.Push("library/app", "1", image)
	users := filepath.Join(t.TempDir(), "users")
	replaceFile(t, users, usersFile(t, map[string]string{"alice": "wonderland"}))
	p := startProgram(t, hub, "ENTREPOT_USERS_FILE="+users)
	p.pull(t, asUser(t, "alice", "wonderland"), "app", "1", image)
	s := operatorOf(t, p).statusAfter(int64(1 + len(image.Blobs)))
	clients := s.Spent.Clients.Lines
	if len(clients) != 1 || clients[0].Name != "alice" || clients[0].Pulls != 1 || clients[0].Heads != 1 || clients[0].Requests != int64(1+len(image.Blobs)) {
		t.Errorf("clients: %+v", clients)
	}
}

// What is broken of another repository does not concern a pull of this one.
func TestExplainTellsOfTroubleThatConcernsIt(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{})
	hub.Push("library/well", "1", ocitest.RandomImage(1, 1000))
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Repo: "library/busy"}, Effect: ocitest.RetryLater(http.StatusServiceUnavailable, "60")})
	p := startProgram(t, hub)
	client, o := newClient(t), operatorOf(t, p)
	for name, want := range map[string]int{"busy": http.StatusServiceUnavailable, "well": http.StatusOK} {
		if status, body, _ := get(t, client, p.registry+"/v2/library/"+name+"/manifests/1"); status != want {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	wantLines(t, o.must("explain", "--table", "busy:1"), `upstream now +localhost:\d+ library/busy:1 down for .*`)
	if out := o.must("explain", "--table", "well:1"); strings.Contains(out, "library/busy") {
		t.Errorf("it tells of another:\n%s", out)
	}
}
