//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"entrepot/internal/ocitest"
)

// stage is what of a pull meets a fault.
type stage string

const (
	atManifest stage = "manifest"
	atToken    stage = "token"
	atBlob     stage = "blob" // the registry's answer, which leads to the CDN
	atCDN      stage = "cdn"
	atMove     stage = "move" // of a held tag: what it has moved to
	atLook     stage = "look" // likewise, after somebody has looked at it and pulled nothing
	gone       stage = "gone" // the whole upstream
)

// fault is a row: what an upstream does, and what becomes of a pull. The blob
// that meets it is the layer that no other image has, and 20,000 is in its
// middle.
type fault struct {
	at     stage
	name   string
	effect ocitest.Effect
	times  int    // 0: until somebody mends it
	says   string // the errors that the cache may answer with where it does not hold the image; empty: none
	fails  string // the clients whose pull fails then
	either string // those that fail if they were quicker than the proof
	tells  string // what docker then says
	asks   int    // the most requests that one such pull may cost the upstream
	podman bool   // podman pulls, too
	stays  bool   // for longer than a test can wait
}

// moves reports that the tag of a held image has moved.
func (f fault) moves() bool { return f.at == atMove || f.at == atLook }

const (
	all      = "docker containerd podman"
	denied   = "pull access denied"
	tooMany  = "toomanyrequests: "
	hides503 = "unexpected HTTP status: 503" // docker reads no body of a 5xx
	hides502 = "unexpected HTTP status: 502"
	hides50x = "unexpected HTTP status: 50" // what hangs is 504, then what is known of it is 503
)

// The slowest first: they run while the others do.
var faults = []fault{
	{at: atCDN, name: "stall-once", effect: ocitest.Stall(20_000), times: 1, asks: 12, podman: true},
	{at: atCDN, name: "short", effect: ocitest.Short(1000), says: "200 206 502", fails: all, asks: 50},
	{at: atCDN, name: "surplus", effect: ocitest.Surplus(1000), says: "200 206 416 502", fails: all, asks: 30},
	{at: atCDN, name: "corrupt", effect: ocitest.Corrupt(20_000), says: "200 206 502", fails: all, asks: 30, podman: true},
	{at: atCDN, name: "corrupt-once", effect: ocitest.Corrupt(20_000), times: 1, says: "200 206", either: all, asks: 14, podman: true},
	{at: atCDN, name: "403", effect: ocitest.Answer(403), says: "502", fails: all, tells: hides502, asks: 50},
	{at: atCDN, name: "404", effect: ocitest.Answer(404), says: "502", fails: all, tells: hides502, asks: 50, podman: true},
	{at: atCDN, name: "500", effect: ocitest.Answer(500), says: "503", fails: all, tells: hides503, asks: 40},
	{at: atCDN, name: "reset", effect: ocitest.Reset(), says: "503", fails: all, tells: hides503, asks: 40},
	{at: atCDN, name: "hang", effect: ocitest.Hang(), says: "504 503", fails: all, asks: 20},
	{at: atCDN, name: "cut", effect: ocitest.Cut(20_000), asks: 14, podman: true},
	{at: atCDN, name: "cut-once", effect: ocitest.Cut(20_000), times: 1, asks: 12},

	{at: atBlob, name: "hang", effect: ocitest.Hang(), says: "504 503", fails: all, asks: 20},
	{at: atBlob, name: "401", effect: ocitest.Answer(401), says: "403", fails: all, tells: denied, asks: 10},
	{at: atBlob, name: "403", effect: ocitest.Answer(403), says: "403", fails: all, tells: denied, asks: 10},
	{at: atBlob, name: "404", effect: ocitest.Answer(404), says: "404", fails: all, tells: "unknown blob", asks: 10},
	{at: atBlob, name: "429-quota", effect: ocitest.QuotaSpent(), says: "429", fails: all, tells: tooMany, asks: 10},
	{at: atBlob, name: "429-abuse", effect: ocitest.AbuseLimit(), says: "429", fails: all, tells: tooMany, asks: 10, stays: true},
	{at: atBlob, name: "429-once", effect: ocitest.RetryLater(429, "1"), times: 1, says: "429", asks: 12, podman: true},
	{at: atBlob, name: "500", effect: ocitest.Answer(500), says: "503", fails: all, tells: hides503, asks: 40},
	{at: atBlob, name: "500-once", effect: ocitest.Answer(500), times: 1, asks: 12, podman: true},
	{at: atBlob, name: "503", effect: ocitest.Answer(503), says: "503", fails: all, tells: hides503, asks: 40, podman: true},
	{at: atBlob, name: "html-200", effect: ocitest.HTML(200), says: "502", fails: all, tells: hides502, asks: 30},
	{at: atBlob, name: "reset", effect: ocitest.Reset(), says: "503", fails: all, tells: hides503, asks: 40},

	{at: atManifest, name: "hang", effect: ocitest.Hang(), says: "504 503", fails: all, tells: hides50x, asks: 4, podman: true},
	{at: atManifest, name: "401", effect: ocitest.Answer(401), says: "403", fails: all, tells: denied, asks: 4},
	{at: atManifest, name: "403", effect: ocitest.Answer(403), says: "403", fails: all, tells: denied, asks: 4},
	{at: atManifest, name: "404", effect: ocitest.Answer(404), says: "404", fails: all, tells: "manifest unknown", asks: 4, podman: true},
	{at: atManifest, name: "429-quota", effect: ocitest.QuotaSpent(), says: "429", fails: all, tells: tooMany, asks: 4},
	{at: atManifest, name: "429-abuse", effect: ocitest.AbuseLimit(), says: "429", fails: all, tells: tooMany, asks: 4, stays: true},
	{at: atManifest, name: "429-later", effect: ocitest.RetryLater(429, "1"), says: "429", fails: all, tells: tooMany, asks: 8, podman: true},
	{at: atManifest, name: "500", effect: ocitest.Answer(500), says: "503", fails: all, tells: hides503, asks: 4},
	{at: atManifest, name: "503", effect: ocitest.Answer(503), says: "503", fails: all, tells: hides503, asks: 4, podman: true},
	{at: atManifest, name: "html-200", effect: ocitest.HTML(200), says: "502", fails: all, tells: hides502, asks: 6},
	{at: atManifest, name: "html-502", effect: ocitest.HTML(502), says: "502", fails: all, tells: hides502, asks: 4},
	{at: atManifest, name: "reset", effect: ocitest.Reset(), says: "503", fails: all, tells: hides503, asks: 4},

	{at: atToken, name: "hang", effect: ocitest.Hang(), says: "504 503", fails: all, tells: hides50x, asks: 4},
	{at: atToken, name: "401", effect: ocitest.Answer(401), says: "403", fails: all, tells: denied, asks: 4, stays: true},
	{at: atToken, name: "429-later", effect: ocitest.RetryLater(429, "1"), says: "429", fails: all, tells: tooMany, asks: 8},
	{at: atToken, name: "500", effect: ocitest.Answer(500), says: "503", fails: all, tells: hides503, asks: 6},
	{at: atToken, name: "html-200", effect: ocitest.HTML(200), says: "502", fails: all, tells: hides502, asks: 6},
	{at: atToken, name: "reset", effect: ocitest.Reset(), says: "503", fails: all, tells: hides503, asks: 6},

	{at: atMove, name: "hang", effect: ocitest.Hang(), podman: true},
	{at: atMove, name: "429-quota", effect: ocitest.QuotaSpent(), podman: true},
	{at: atMove, name: "429-later", effect: ocitest.RetryLater(429, "1")},
	{at: atMove, name: "404", effect: ocitest.Answer(404)},
	{at: atMove, name: "500", effect: ocitest.Answer(500)},

	{at: atLook, name: "hang", effect: ocitest.Hang()},
	{at: atLook, name: "503", effect: ocitest.Answer(503), podman: true},
	{at: atLook, name: "reset", effect: ocitest.Reset()},

	{at: gone, name: "stopped", says: "503", fails: all, tells: hides503, podman: true, stays: true},
}

const (
	faultHeaders = 3 * time.Second  // that a client waits for, at most
	faultSlack   = 5 * time.Second  // for a busy machine
	faultPull    = 60 * time.Second // until a client counts as one that hangs
	// Until a pull works again, at most: the next probe of what failed for twenty seconds may be as
	// far away, and a docker that came just before it tries its layer again up to ten seconds later.
	faultMended  = 45 * time.Second
	faultsAtOnce = 12
)

// TestFaults: real clients pull through each fault of an upstream, what is held
// and what is not. Each pull has an upstream of its own, so that they disturb
// each other as little as they can, and all of them one cache.
//
// What is held is served, marked as stale, and nobody goes around the cache. What
// is not is refused: in time, with the status that is true, at a bounded price
// however often the client asks, and it is there once the fault is mended.
func TestFaults(t *testing.T) {
	var pulls []*faultyPull
	for _, f := range faults {
		for _, held := range []bool{false, true} {
			if held && (f.at == atBlob || f.at == atCDN) {
				continue // nobody asks for what is held
			}
			if !held && f.moves() {
				continue // to who holds nothing it is a manifest as any
			}
			for client := range strings.FieldsSeq(all) {
				if client != "podman" || f.podman {
					pulls = append(pulls, newFaultyPull(t, f, held, client))
				}
			}
		}
	}
	settings := []string{
		"ENTREPOT_TAG_TTL=1ms", "ENTREPOT_NEGATIVE_TTL=1s", "ENTREPOT_LOG_FORMAT=json",
		"ENTREPOT_CHECK_WAIT=300ms", "ENTREPOT_QUEUE_WAIT=1s", "ENTREPOT_HEADER_TIMEOUT=" + faultHeaders.String(),
	}
	for i, p := range pulls {
		settings = append(settings, fmt.Sprintf("ENTREPOT_UPSTREAM_%d_NAME=%s", i+2, p.host), fmt.Sprintf("ENTREPOT_UPSTREAM_%d_URL=%s", i+2, p.hub.URL()))
	}
	s := newSite(t, settings...)
	clients := faultClients(t, s)

	var wg sync.WaitGroup
	room := make(chan struct{}, faultsAtOnce)
	for _, p := range pulls {
		wg.Go(func() {
			room <- struct{}{}
			p.play(t.Context(), s, clients[p.client])
			<-room
		})
	}
	wg.Wait()
	s.stopCache(t) // so that its log is whole

	log, around := requestLog(s.cache.output.String()), s.around.take()
	for _, p := range pulls {
		t.Run(p.host, func(t *testing.T) { p.check(t, log[p.host], around) })
	}
}

// faultyPull is one client's pull of an image in one fault.
type faultyPull struct {
	fault
	held   bool
	client string
	host   string // the upstream's name
	hub    *ocitest.Hub
	image  hello
	next   hello // that the tag moves to, if it does

	warmed   error         // why the image could not be had before
	err      error         // of the pull in the fault
	took     time.Duration // that it took
	asked    []string      // what it cost the upstream
	mended   error         // of the last pull thereafter
	greeting string        // of the image that came
}

const faultRepo = "library/app"

func newFaultyPull(t *testing.T, f fault, held bool, client string) *faultyPull {
	t.Helper()
	p := &faultyPull{fault: f, held: held, client: client, hub: ocitest.NewHub(t, ocitest.Config{})}
	state := "new"
	if held {
		state = "held"
	}
	p.host = fmt.Sprintf("%s-%s-%s.%s.test", f.at, f.name, state, client)
	p.image = newHello(t, "hello from "+p.host, false, 64<<10)
	p.hub.Push(faultRepo, "1", p.image.Image)
	if f.moves() {
		p.next = newHello(t, "hello again from "+p.host, false, 64<<10)
	}
	return p
}

// name is the image's, for clients that have a mirror.
func (p *faultyPull) name() string { return p.host + "/" + faultRepo + ":1" }

// play pulls while the fault is there, and again when it is not. It says nothing
// yet: the cache's log is not whole.
func (p *faultyPull) play(ctx context.Context, s *site, c faultClient) {
	if p.held {
		if p.warmed = p.warm(ctx, s); p.warmed != nil {
			return
		}
	}
	if p.moves() {
		p.hub.Push(faultRepo, "1", p.next.Image)
	}
	if p.at == atLook {
		if p.warmed = s.fetch(ctx, p.host+"/"+faultRepo, "manifests/1", "manifests/"+p.next.own.Digest.String()); p.warmed != nil {
			return
		}
	}
	p.hub.ExpireTokens()
	p.hub.Reset()
	p.inject()
	began := time.Now()
	_, p.err = try(ctx, faultPull, c.env, c.pull(p)...)
	p.took = time.Since(began)
	p.asked = p.hub.Lines()
	p.hub.ClearFaults()
	if p.stays && !p.held {
		return
	}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for began = time.Now(); time.Since(began) < faultMended; <-tick.C {
		if _, p.mended = try(ctx, faultPull, c.env, c.pull(p)...); p.mended == nil {
			for tries := 0; tries < 3 && p.greeting == "" && p.mended == nil; tries++ { // ctr may lose what a short process prints
				p.greeting, p.mended = try(ctx, faultPull, c.env, c.run(p)...)
			}
			return
		}
	}
}

func (p *faultyPull) inject() {
	layer := p.image.own.Blobs[len(p.image.own.Blobs)-1].Digest.String()
	match := map[stage]ocitest.Match{
		atManifest: {Role: ocitest.Registry, Kind: ocitest.Manifest},
		atMove:     {Role: ocitest.Registry, Kind: ocitest.Manifest, Method: http.MethodGet},
		atToken:    {Role: ocitest.Token},
		atBlob:     {Role: ocitest.Registry, Kind: ocitest.BlobKind, Reference: layer},
		atCDN:      {Role: ocitest.CDN, Kind: ocitest.BlobKind, Reference: layer},
	}
	if p.at == gone {
		p.hub.Close()
		return
	}
	p.hub.Inject(&ocitest.Fault{Match: match[p.at], Effect: p.effect, Times: p.times})
}

// warm has the cache hold what the clients here will ask for.
func (p *faultyPull) warm(ctx context.Context, s *site) error {
	paths := []string{"manifests/1", "manifests/" + p.image.own.Digest.String()}
	for _, blob := range p.image.own.Blobs {
		paths = append(paths, "blobs/"+blob.Digest.String())
	}
	return s.fetch(ctx, p.host+"/"+faultRepo, paths...)
}

// fetch reads what the cache answers at paths of a repository.
func (s *site) fetch(ctx context.Context, repo string, paths ...string) error {
	for _, path := range paths {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.ref("v2/"+repo+"/"+path), nil)
		if err != nil {
			return err
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s: %w", req.URL, resp.Status, err)
		}
	}
	return nil
}

// check holds what came of the pull against its row.
func (p *faultyPull) check(t *testing.T, answers []logged, around []string) {
	t.Helper()
	t.Logf("%.1f s, %d requests upstream, %v, %v", p.took.Seconds(), len(p.asked), p.errors(answers), p.err)
	fails := !p.held && strings.Contains(p.fails, p.client)
	either := !p.held && strings.Contains(p.either, p.client)
	switch {
	case p.warmed != nil:
		t.Fatal(p.warmed)
	case errors.Is(p.err, context.DeadlineExceeded):
		t.Errorf("%s hangs", p.client)
	case fails && p.err == nil:
		t.Error("the pull succeeded, want it to fail")
	case !fails && !either && p.err != nil:
		t.Errorf("the pull failed: %v", p.err)
	case fails && p.client == "docker" && !strings.Contains(p.err.Error(), p.tells):
		t.Errorf("docker says\n%v\nwant %q in it", p.err, p.tells)
	}
	if p.held {
		p.checkHeld(t, answers)
	} else {
		p.checkRefused(t, answers)
	}
	went := slices.ContainsFunc(around, func(request string) bool { return strings.Contains(request, p.host) })
	if went && !fails && !either {
		t.Errorf("%s went around the cache", p.client)
	}
	if p.stays && !p.held {
		return
	}
	if p.mended != nil {
		t.Errorf("after the fault the pull failed: %v", p.mended)
	} else if p.greeting != p.image.greeting && (!p.moves() || p.greeting != p.next.greeting) {
		t.Errorf("the image printed %q, want %q", p.greeting, p.image.greeting)
	}
}

// checkHeld wants no error, and the tag to be marked.
func (p *faultyPull) checkHeld(t *testing.T, answers []logged) {
	t.Helper()
	stale := false
	for _, a := range answers {
		if a.Status >= 400 || a.Error != "" {
			t.Errorf("the image is held, and the cache answered %+v", a)
		}
		if a.Outcome == "stale" && a.Kind == "manifest" {
			stale = true
			if a.Seconds >= faultHeaders.Seconds() {
				t.Errorf("a held tag was served after %.1f s", a.Seconds)
			}
		}
	}
	if !stale {
		t.Error("nothing was marked as stale")
	}
	if len(p.asked) > 5 { // a probe of a host that hangs among them
		t.Errorf("a held tag cost the upstream %d requests:\n%s", len(p.asked), strings.Join(p.asked, "\n"))
	}
}

// checkRefused wants errors that are true, in time, and cheap.
func (p *faultyPull) checkRefused(t *testing.T, answers []logged) {
	t.Helper()
	may := strings.Fields(p.says)
	seen := p.errors(answers)
	for _, status := range seen {
		if !slices.Contains(may, status) {
			t.Errorf("the cache answered %s, want of errors only %q", status, p.says)
		}
	}
	if len(may) > 0 && len(seen) == 0 && p.either == "" {
		t.Errorf("the cache answered no error, want %s", p.says)
	}
	for _, a := range answers {
		if a.Status >= 400 && a.Seconds > (faultHeaders+faultSlack).Seconds() {
			t.Errorf("the client waited for an error for %.1f s", a.Seconds)
		}
	}
	if len(p.asked) > p.asks {
		t.Errorf("the pull cost the upstream %d requests, want %d at most:\n%s", len(p.asked), p.asks, strings.Join(p.asked, "\n"))
	}
}

// errors are the statuses of answers that were errors, or cut in the middle.
func (p *faultyPull) errors(answers []logged) []string {
	var seen []string
	for _, a := range answers {
		left := strings.HasPrefix(a.Error, "client gone") // on purpose: a client gives up on the rest of an image that fails
		if status := fmt.Sprint(a.Status); a.Error != "" && !left && !slices.Contains(seen, status) {
			seen = append(seen, status)
		}
	}
	return seen
}

// logged is an answer as the cache's log tells it.
type logged struct {
	Message, Upstream, Method, Kind, Outcome, Error string
	Status                                          int
	Seconds                                         float64 `json:"duration_seconds"`
}

// requestLog sorts the answers in a log by upstream.
func requestLog(log string) map[string][]logged {
	answers := map[string][]logged{}
	for line := range strings.Lines(log) {
		var l logged
		if json.Unmarshal([]byte(line), &l) == nil && l.Message == "request" {
			answers[l.Upstream] = append(answers[l.Upstream], l)
		}
	}
	return answers
}

// faultClient is how one kind of client pulls and runs an image.
type faultClient struct {
	env       []string
	pull, run func(p *faultyPull) []string
}

// faultClients are docker, which names the cache, and containerd and podman,
// which have it as a mirror and would go around it by the trap.
func faultClients(t *testing.T, s *site) map[string]faultClient {
	t.Helper()
	d := newDocker(t, s, tempDir(t), `{"max-concurrent-downloads": 100, "max-download-attempts": 2}`)
	c := newContainerd(t, s, tempDir(t))
	write(t, filepath.Join(c.hosts, "_default", "hosts.toml"), s.clientFile(t, "containerd"))
	ctr := []string{"ctr", "--address", c.socket}
	return map[string]faultClient{
		"docker": {
			d.env,
			func(p *faultyPull) []string { return []string{"docker", "pull", s.ref(p.name())} },
			func(p *faultyPull) []string {
				return []string{"docker", "run", "--rm", "--network", "none", "--pull", "never", s.ref(p.name())}
			},
		},
		"containerd": {
			c.env,
			func(p *faultyPull) []string {
				return append(slices.Clone(ctr), "images", "pull", "--snapshotter", "native", "--hosts-dir", c.hosts, p.name())
			},
			func(p *faultyPull) []string {
				return append(slices.Clone(ctr), "run", "--rm", "--snapshotter", "native", p.name(), p.host)
			},
		},
		"podman": {
			containers(t, s, tempDir(t)),
			func(p *faultyPull) []string { return []string{"podman", "pull", p.name()} },
			func(p *faultyPull) []string {
				return []string{"podman", "run", "--rm", "--network", "none", "--pull", "never", p.name()}
			},
		},
	}
}

// A dockerd with a mirror says nothing when it goes around it. For what is held
// it never has a reason to, whatever Docker Hub does.
func TestDockerWithRegistryMirrorInFaults(t *testing.T) {
	s := newSite(t, "ENTREPOT_TAG_TTL=1ms", "ENTREPOT_CHECK_WAIT=300ms")
	rows := []struct {
		name  string
		match ocitest.Match
		ocitest.Effect
	}{
		{"hang", ocitest.Match{}, ocitest.Hang()},
		{"quota", ocitest.Match{Kind: ocitest.Manifest}, ocitest.QuotaSpent()},
		{"outage", ocitest.Match{}, ocitest.Answer(http.StatusServiceUnavailable)},
		{"deleted", ocitest.Match{Kind: ocitest.Manifest}, ocitest.Answer(http.StatusNotFound)},
		{"token", ocitest.Match{Role: ocitest.Token}, ocitest.Answer(http.StatusForbidden)},
		{"stopped", ocitest.Match{}, ocitest.Effect{}},
	}
	images := map[string]hello{}
	for _, row := range rows {
		image := newHello(t, "hello through a mirror in "+row.name, true, 64<<10)
		repo := "library/e2e-fault-" + row.name
		images[row.name] = image
		s.hub.Push(repo, "latest", image.Image)
		paths := []string{"manifests/latest", "manifests/" + image.own.Digest.String()}
		for _, blob := range image.own.Blobs {
			paths = append(paths, "blobs/"+blob.Digest.String())
		}
		if err := s.fetch(t.Context(), repo, paths...); err != nil {
			t.Fatal(err)
		}
	}
	d := newDocker(t, s, tempDir(t), s.clientFile(t, "docker"))
	for _, row := range rows {
		s.restartCache(t, "ENTREPOT_LISTEN="+s.addr) // it is to remember nothing of the last fault
		s.hub.ExpireTokens()
		if row.name == "stopped" {
			s.stopUpstreams()
		} else {
			s.hub.Inject(&ocitest.Fault{Match: row.match, Effect: row.Effect})
		}
		ref := "e2e-fault-" + row.name
		d.run(t, "pull", ref)
		d.greets(t, ref, images[row.name].greeting)
		s.hub.ClearFaults()
	}
}
