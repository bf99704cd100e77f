package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/store"
	"entrepot/upstream"
)

// Days of outages and quotas, from a client's side: the stack as serve puts it
// together, clients, and a fake Docker Hub, all on a network in memory and on a
// clock that only waiting moves.

// simulation is such a world.
type simulation struct {
	t      *testing.T
	hub    *ocitest.Hub
	net    *ocitest.Network
	client *http.Client
	url    string
	cache  *cache.Cache
	dials  atomic.Int64 // of the cache, to upstream
	hole   atomic.Bool  // the cache's dials come to nothing
}

// simulated runs f with the settings in pairs.
func simulated(t *testing.T, habits ocitest.Habits, pairs []string, f func(*simulation)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &simulation{t: t, net: ocitest.NewNetwork()}
		s.hub = ocitest.NewHub(t, ocitest.Config{Habits: habits, Network: s.net})
		defer s.start(pairs)()
		f(s)
	})
}

// start puts the stack together and returns what takes it apart.
func (s *simulation) start(pairs []string) (stop func()) {
	t := s.t
	cfg := mustLoad(t, append([]string{"ENTREPOT_UPSTREAMS=docker.io", "ENTREPOT_PREFETCH=off"}, pairs...)...)
	u := cfg.UpstreamSettings()[0]
	client, err := upstream.New(upstream.Config{
		Name: u.Name, URL: s.hub.URL(), Credentials: u.Login.credentials(), Limits: cfg.limits(u), Dial: s.dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	upstreams := upstream.NewSet(client)
	disk, err := store.Open(t.Context(), store.Config{Dir: dirInMemory(t), Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	settings := cfg.cache(new(observer))
	settings.Warn, settings.Login = nil, upstreams.Login
	s.cache = cache.New(disk, upstreams, settings)
	listener := s.net.Listen("cache")
	s.url = "http://" + listener.Addr().String()
	server := &http.Server{Handler: addressed(registryHandler(proxy.New(s.cache, proxy.Config{
		Names: cfg.Names(), HeaderTimeout: time.Duration(cfg.HeaderTimeout), MayRefresh: func(*http.Request, string) bool { return true },
	}), unseen))}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	transport := &http.Transport{DialContext: s.net.DialContext}
	s.client = &http.Client{Transport: transport}
	return func() {
		transport.CloseIdleConnections()
		if err := errors.Join(server.Close(), s.cache.Close(context.WithoutCancel(t.Context()))); err != nil {
			t.Error(err)
		}
		upstreams.Close()
		if err := disk.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}
}

// addressHeader gives a request the address of its client, which has none in memory.
const addressHeader = "Client-Address"

func addressed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if address := r.Header.Get(addressHeader); address != "" {
			r.RemoteAddr = net.JoinHostPort(address, "1")
		}
		h.ServeHTTP(w, r)
	})
}

// dirInMemory is a directory that is synced in no time, where there is one.
func dirInMemory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "entrepot-test-") //nolint:usetesting // t.TempDir lies where syncing takes time
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// dial is the line to upstream.
func (s *simulation) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	s.dials.Add(1)
	if s.hole.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return s.net.DialContext(ctx, network, addr)
}

// reply is what a client got, its headers after how long.
type reply struct {
	status int
	mark   string
	header http.Header
	body   []byte
	err    error // the body's
	after  time.Duration
}

func (s *simulation) ask(method, uri string, header ...string) reply {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url+uri, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	began := time.Now()
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, uri, err)
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, mark: resp.Header.Get("X-Entrepot-Cache"), header: resp.Header, after: time.Since(began)}
	r.body, r.err = io.ReadAll(resp.Body)
	return r
}

// push pushes n images, 0 to n-1 of library/app, which are small.
func (s *simulation) push(n int) {
	for i := range n {
		s.hub.Push("library/app", strconv.Itoa(i), ocitest.RandomImage(uint64(i), 10))
	}
}

func tagged(i int) string { return "/v2/library/app/manifests/" + strconv.Itoa(i) }

// mustGet gets a manifest.
func (s *simulation) mustGet(uri string) reply {
	s.t.Helper()
	r := s.ask(http.MethodGet, uri)
	if r.status != http.StatusOK {
		s.t.Fatalf("%s: %d %s", uri, r.status, r.body)
	}
	return r
}

var checks = ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest, Method: http.MethodHead}

func TestATagThatIsPulledAllDayCostsAHeadPerTTL(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{PullLimit: 100}, nil, func(s *simulation) {
		s.push(1)
		s.mustGet(tagged(0))
		s.hub.Reset()
		for range 24 * 60 * 2 { // every half a minute, for a day
			s.mustGet(tagged(0))
			time.Sleep(30 * time.Second)
		}
		if got, most := s.hub.Count(checks), 24*12; got > most {
			t.Errorf("%d checks in a day, want at most %d", got, most)
		}
		if n := s.hub.CountedPulls(); n > 0 {
			t.Errorf("%d counted pulls", n)
		}
	})
}

// A limit that is spent is no reason not to serve what is held, of which there
// may be more than the limit.
func TestMoreHeldTagsThanTheQuotaAllows(t *testing.T) {
	t.Parallel()
	for name, effect := range map[string]*ocitest.Effect{
		"HEAD still answered": nil, "HEAD refused too": new(ocitest.QuotaSpent()), "abuse": new(ocitest.AbuseLimit()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
				s.push(101)
				for i := range 101 {
					s.mustGet(tagged(i))
				}
				s.hub.Set(func(h *ocitest.Habits) { h.PullLimit = 100 })
				for i := range 100 { // somebody else spends it
					s.hub.Push("library/other", strconv.Itoa(i), ocitest.RandomImage(uint64(1000+i), 10))
					s.ask(http.MethodGet, "/v2/library/other/manifests/"+strconv.Itoa(i))
				}
				if effect != nil {
					s.hub.Inject(&ocitest.Fault{Effect: *effect})
				}
				s.hub.Reset()
				for range 3 {
					time.Sleep(time.Hour)
					for i := range 101 {
						r := s.mustGet(tagged(i))
						if want := map[bool]string{true: "hit", false: "stale"}[effect == nil]; r.mark != want {
							t.Fatalf("tag %d is a %s, want %s: %s", i, r.mark, want, r.header.Get("Warning"))
						}
					}
				}
				if n := s.hub.CountedPulls(); n > 0 {
					t.Errorf("%d counted pulls", n)
				}
			})
		})
	}
}

// Sixty pulls of as many tags come at once, where upstream is asked once a second:
// some are answered from the first seconds on, the others are told when to come
// again, and then get what they want. None is left to wait until it is told 504.
func TestManyPullsAtALowRate(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{}, []string{"ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_RATE=1"}, func(s *simulation) {
		const tags = 60
		s.push(tags + 1)
		s.mustGet(tagged(tags)) // what upstream wants is known
		time.Sleep(10 * time.Second)
		began := time.Now()
		served, again := make([]time.Duration, tags), make([]int, tags)
		var clients sync.WaitGroup
		for i := range tags {
			clients.Go(func() {
				for {
					r := s.ask(http.MethodGet, tagged(i))
					if r.status == http.StatusOK {
						served[i] = time.Since(began)
						return
					}
					seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
					if again[i]++; r.status != http.StatusTooManyRequests || err != nil || again[i] > 1 {
						t.Errorf("tag %d, refused %d times: %d after %v, Retry-After %q: %s", i, again[i], r.status, r.after, r.header.Get("Retry-After"), r.body)
						return
					}
					time.Sleep(time.Duration(seconds) * time.Second)
				}
			})
		}
		clients.Wait()
		slices.Sort(served)
		for i, at := range served {
			if most := time.Duration(2*i+12) * time.Second; at > most || i < 5 && at > time.Duration(2*i+3)*time.Second {
				t.Errorf("the %dth has its answer after %v: %v", i, at, served)
				break
			}
		}
	})
}

// Four clients ask for fifteen images each, all at once, of an upstream that wants a token
// for each and is asked at a low rate. Who is refused is told a second at which he has what
// he asked for, whatever others do, and the rate is used from the first second to the last.
func TestAFleetIsToldWhenToCome(t *testing.T) {
	t.Parallel()
	const clients, images = 4, 15
	for _, tt := range []struct {
		rate, wait int
		auth       string
	}{{1, 10, ""}, {2, 10, ""}, {2, 2, ""}, {2, 10, "none"}, {2, 2, "none"}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			t.Parallel()
			settings := []string{
				"ENTREPOT_UPSTREAM_0_NAME=docker.io", fmt.Sprint("ENTREPOT_UPSTREAM_0_RATE=", tt.rate), fmt.Sprintf("ENTREPOT_QUEUE_WAIT=%ds", tt.wait),
			}
			simulated(t, ocitest.Habits{Auth: ocitest.Auth(tt.auth), Latency: 30 * time.Millisecond}, settings, func(s *simulation) {
				at := func(i int) string { return fmt.Sprintf("/v2/library/app%d/manifests/latest", i) }
				for i := range clients*images + 1 {
					s.hub.Push(fmt.Sprint("library/app", i), "latest", ocitest.RandomImage(uint64(i), 10))
				}
				s.mustGet(at(clients * images)) // what upstream wants is known
				time.Sleep(10 * time.Second)
				began := time.Now()
				var fleet sync.WaitGroup
				for i := range clients * images {
					fleet.Go(func() {
						address := fmt.Sprint("192.0.2.", i/images)
						r := s.ask(http.MethodGet, at(i), addressHeader, address)
						if r.status == http.StatusTooManyRequests {
							seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
							if err != nil {
								t.Error(err)
							}
							time.Sleep(time.Duration(seconds) * time.Second)
							r = s.ask(http.MethodGet, at(i), addressHeader, address)
						}
						if most := time.Duration(tt.wait)*time.Second + 5*time.Second/2; r.status != http.StatusOK || r.after > most {
							t.Errorf("image %d: %d after %v, %v since all began: %s", i, r.status, r.after, time.Since(began), r.body)
						}
					})
				}
				fleet.Wait()
				if n, want := s.hub.Count(ocitest.Match{Role: ocitest.Token}), clients*images+1; tt.auth == "" && n != want {
					t.Errorf("%d tokens were got, want one for each of %d images: not for who is refused", n, want)
				}
				if took, least := time.Since(began), 2*clients*images*time.Second/time.Duration(tt.rate); took > least+least/20+2*time.Second {
					t.Errorf("it took %v, want %v or little more", took, least)
				}
			})
		})
	}
}

// Where a check costs a pull, since HEAD is refused, checks of what is held leave
// the reserve of the quota to what is not.
func TestChecksByGetLeaveTheReserve(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{RefuseHead: http.StatusMethodNotAllowed, PullLimit: 20}, []string{"ENTREPOT_QUOTA_RESERVE=20%"}, func(s *simulation) {
		s.push(5)
		s.mustGet(tagged(0))
		for range 24 {
			time.Sleep(6 * time.Minute)
			s.mustGet(tagged(0))
		}
		if n := s.hub.CountedPulls(); n < 14 || n > 16 {
			t.Errorf("one tag's checks cost %d pulls of 20, want all but the 4 that are kept", n)
		}
		for i := range 4 {
			s.mustGet(tagged(1 + i))
		}
	})
}

// While a quota is down to what is kept for what is not held, a tag that has moved
// is served as it is held, to GET and to HEAD, which clients follow by a GET of what
// they are told; what is not held is fetched, and so is the moved tag for who insists.
func TestAMovedTagLeavesTheReserve(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{PullLimit: 20}, []string{"ENTREPOT_QUOTA_RESERVE=20%"}, func(s *simulation) {
		s.push(20)
		digests := map[int]string{}
		for i := range 16 {
			digests[i] = s.mustGet(tagged(i)).header.Get("Docker-Content-Digest")
		}
		for i := range 16 {
			s.hub.Push("library/app", strconv.Itoa(i), ocitest.RandomImage(uint64(100+i), 10))
		}
		s.hub.Reset()
		for range 12 { // an hour
			time.Sleep(5*time.Minute + time.Second)
			for i := range 16 {
				for _, method := range []string{http.MethodHead, http.MethodGet} {
					r := s.ask(method, tagged(i))
					if got := r.header.Get("Docker-Content-Digest"); r.status != http.StatusOK || r.mark != "stale" || got != digests[i] || !strings.Contains(r.header.Get("Warning"), "kept") {
						t.Fatalf("%s of tag %d: %d, %s as %s, want %s as stale: %s", method, i, r.status, got, r.mark, digests[i], r.header.Get("Warning"))
					}
				}
			}
		}
		if pulls, heads := s.hub.CountedPulls(), s.hub.Count(checks); pulls > 0 || heads > 16*12 {
			t.Errorf("it cost %d pulls and %d checks, want none, and one for each TTL at most", pulls, heads)
		}
		for i := 16; i < 19; i++ { // not held
			s.mustGet(tagged(i))
		}
		if r := s.ask(http.MethodGet, tagged(0), "Cache-Control", "no-cache"); r.mark != "miss" || r.header.Get("Docker-Content-Digest") == digests[0] {
			t.Errorf("who insists gets a %s: %s", r.mark, r.header.Get("Warning"))
		}
		if n := s.hub.CountedPulls(); n != 4 {
			t.Errorf("%d pulls of the reserve, want all 4", n)
		}
		s.hub.Set(func(h *ocitest.Habits) { h.PullLimit = 100 })
		time.Sleep(time.Hour)
		if r := s.mustGet(tagged(1)); r.mark != "miss" || r.header.Get("Docker-Content-Digest") == digests[1] {
			t.Errorf("with pulls to spend it is a %s, want the new image", r.mark)
		}
	})
}

// A held tag has moved, its hub answers the check, and does not give what it names
// now: GET and HEAD, which clients follow by a GET of what they are told, are told of
// the image that is held. Where it is silence one client waits for that, once.
func TestAMovedTagThatIsNotGivenIsServedAsItIsHeld(t *testing.T) {
	t.Parallel()
	gets := ocitest.Match{Role: ocitest.Registry, Kind: ocitest.Manifest, Method: http.MethodGet}
	for name, effect := range map[string]ocitest.Effect{
		"429": ocitest.QuotaSpent(), "silence": ocitest.Hang(), "500": ocitest.Answer(500), "reset": ocitest.Reset(),
		"403": ocitest.Answer(403), "404": ocitest.Answer(404), "other bytes": ocitest.Corrupt(5),
	} {
		for _, methods := range [][]string{{http.MethodHead, http.MethodGet}, {http.MethodGet, http.MethodHead}} {
			t.Run(name+" "+methods[0], func(t *testing.T) {
				t.Parallel()
				simulated(t, ocitest.Habits{}, []string{"ENTREPOT_TAG_TTL=1m", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_KEEP_DELETED=off"}, func(s *simulation) {
					s.push(1)
					held := s.mustGet(tagged(0)).header.Get("Docker-Content-Digest")
					s.hub.Push("library/app", "0", ocitest.RandomImage(100, 10))
					s.hub.Inject(&ocitest.Fault{Match: gets, Effect: effect})
					s.hub.Reset()
					for i := range 20 {
						time.Sleep(2 * time.Minute)
						for j, method := range append(methods, methods...) {
							r := s.ask(method, tagged(0))
							if got := r.header.Get("Docker-Content-Digest"); r.status != http.StatusOK || r.mark != "stale" || got != held {
								t.Fatalf("%s: %d, %s as %s, want %s as stale: %s", method, r.status, got, r.mark, held, r.header.Get("Warning"))
							}
							if most := map[bool]time.Duration{true: 2 * time.Second}[i+j == 0]; r.after > most+time.Second/10 {
								t.Errorf("%s waits for %v, want %v at most", method, r.after, most)
							}
							s.mustGet("/v2/library/app/manifests/" + held)
						}
					}
					if heads, pulls := s.hub.Count(checks), s.hub.Count(gets); heads > 40 || pulls > 40 {
						t.Errorf("it cost %d checks and %d pulls, want two of each for each TTL at most", heads, pulls)
					}
					s.hub.ClearFaults()
					time.Sleep(12 * time.Hour)
					s.ask(http.MethodHead, tagged(0)) // where it was silent, nobody waits for it
					time.Sleep(time.Second)
					if told := s.ask(http.MethodHead, tagged(0)); told.header.Get("Docker-Content-Digest") == held {
						t.Errorf("it is served still, once the new image can be had: %s", told.header.Get("Warning"))
					}
				})
			})
		}
	}
}

// An outage of ten minutes, whatever its form, in which somebody pulls a held tag
// seventeen times a second: it costs the first few who notice it, a probe every
// half a minute, and no client any time but the first of those who wait in vain.
func TestTenThousandPullsInAnOutageCostAHandfulOfRequests(t *testing.T) {
	t.Parallel()
	for name, effect := range map[string]ocitest.Effect{
		"500": ocitest.Answer(500), "503": ocitest.RetryLater(503, "60"), "reset": ocitest.Reset(), "silence": ocitest.Hang(), "page": ocitest.HTML(502), "abuse": ocitest.AbuseLimit(),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
				const tags = 40
				pulls := 10_000
				if name != "silence" && name != "503" { // which differ in how they are noticed, and no more
					pulls = 2_500
				}
				s.push(tags)
				for i := range tags {
					s.mustGet(tagged(i))
				}
				time.Sleep(time.Hour)
				s.hub.Reset()
				s.hub.Inject(&ocitest.Fault{Effect: effect})
				slow := 0
				for i := range pulls {
					if r := s.mustGet(tagged(i % tags)); r.mark != "stale" || r.header.Get("Warning") == "" {
						t.Fatalf("pull %d is a %s: %q", i, r.mark, r.header.Get("Warning"))
					} else if r.after > 0 {
						slow++
					}
					time.Sleep(10 * time.Minute / time.Duration(pulls))
				}
				if n := len(s.hub.Requests()); n > 40 {
					t.Errorf("%d pulls cost %d requests, want a handful of probes: %q", pulls, n, s.hub.Lines())
				}
				if slow > 1 {
					t.Errorf("%d pulls had to wait", slow)
				}
			})
		})
	}
}

// A tag has moved, as somebody's HEAD found out, and its hub went away before anybody
// got the new image: whoever asks for it, by tag or by the digest that HEAD tells,
// has it all the same.
func TestAMoveThatHeadToldOfOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	for name, effect := range map[string]ocitest.Effect{"500": ocitest.Answer(500), "reset": ocitest.Reset(), "silence": ocitest.Hang(), "quota": ocitest.QuotaSpent()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, []string{"ENTREPOT_TAG_TTL=1h"}, func(s *simulation) {
				s.push(1)
				old := s.mustGet(tagged(0)).header.Get("Docker-Content-Digest")
				s.hub.Push("library/app", "0", ocitest.RandomImage(100, 10))
				time.Sleep(2 * time.Hour)
				s.hub.Reset()
				moved := s.ask(http.MethodHead, tagged(0))
				digest := moved.header.Get("Docker-Content-Digest")
				if pulls := s.hub.CountedPulls(); moved.mark != "miss" || digest == old || pulls != 1 {
					t.Fatalf("it is a %s of %s at %d pulls", moved.mark, digest, pulls)
				}
				s.hub.Inject(&ocitest.Fault{Effect: effect})
				for range 3 {
					s.mustGet("/v2/library/app/manifests/" + digest)
					for _, method := range []string{http.MethodHead, http.MethodGet} {
						if r := s.ask(method, tagged(0)); r.status != http.StatusOK || r.header.Get("Docker-Content-Digest") != digest {
							t.Errorf("%s: %d, %s as %s, want %s", method, r.status, r.header.Get("Docker-Content-Digest"), r.mark, digest)
						}
					}
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

// pull gets what a tag names, its config and its layers, as containerd does: by HEAD,
// and then by digest. It returns the digest, and the first status that was no success.
func (s *simulation) pull(i int) (digest string, status int) {
	s.t.Helper()
	head := s.ask(http.MethodHead, tagged(i))
	digest = head.header.Get("Docker-Content-Digest")
	if head.status != http.StatusOK {
		return digest, head.status
	}
	manifest := s.ask(http.MethodGet, "/v2/library/app/manifests/"+digest)
	links, err := oci.ParseLinks(manifest.body)
	if err != nil || manifest.status != http.StatusOK {
		return digest, manifest.status
	}
	for _, b := range links.Blobs() {
		if r := s.ask(http.MethodGet, "/v2/library/app/blobs/"+b.Digest.String()); r.status != http.StatusOK || r.err != nil {
			return digest, r.status
		}
	}
	return digest, http.StatusOK
}

// An image was pulled, and its tag has moved; somebody has looked at that, and then its
// hub goes away. Pulls get the image that is here, but for the first of those who come
// while what they are told of is fresh.
func TestAMoveThatNobodyPulledOutlivesAnOutage(t *testing.T) {
	t.Parallel()
	for name, effect := range map[string]ocitest.Effect{"500": ocitest.Answer(500), "reset": ocitest.Reset(), "silence": ocitest.Hang(), "later": ocitest.RetryLater(429, "3600")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, []string{"ENTREPOT_TAG_TTL=1h"}, func(s *simulation) {
				s.push(1)
				old, _ := s.pull(0)
				s.hub.Push("library/app", "0", ocitest.RandomImage(100, 10))
				time.Sleep(2 * time.Hour)
				moved := s.ask(http.MethodHead, tagged(0)).header.Get("Docker-Content-Digest")
				s.hub.Inject(&ocitest.Fault{Effect: effect})
				if digest, status := s.pull(0); digest != moved || status == http.StatusOK {
					t.Errorf("the first pull got %s: %d, want the new image, which is not here", digest, status)
				}
				for range 200 {
					if digest, status := s.pull(0); digest != old || status != http.StatusOK {
						t.Fatalf("a pull got %s: %d, want the old image", digest, status)
					}
					time.Sleep(time.Minute)
				}
				s.hub.ClearFaults()
				time.Sleep(2 * time.Hour)
				s.pull(0) // where it was silent, nobody waits for it
				time.Sleep(time.Second)
				if digest, status := s.pull(0); digest != moved || status != http.StatusOK {
					t.Errorf("after the outage a pull got %s: %d, want the new image", digest, status)
				}
			})
		})
	}
}

// A tag has moved, of which upstream tells, and does not give the layers: who pulls it
// first notices, and all others get the image before, until the layers are there.
func TestAMoveWhoseLayersAreNotGivenKeepsTheImage(t *testing.T) {
	t.Parallel()
	for name, effect := range map[string]ocitest.Effect{"404": ocitest.Answer(404), "503": ocitest.Answer(503), "later": ocitest.RetryLater(429, "600"), "cut": ocitest.Reset()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			simulated(t, ocitest.Habits{}, []string{"ENTREPOT_TAG_TTL=1m"}, func(s *simulation) {
				s.push(2)
				old, _ := s.pull(0)
				s.hub.Push("library/app", "0", ocitest.RandomImage(100, 10))
				s.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.CDN}, Effect: effect})
				time.Sleep(2 * time.Hour)
				moved, status := s.pull(0)
				if moved == old || status == http.StatusOK {
					t.Errorf("the first pull got %s: %d, want the new image, which is not here", moved, status)
				}
				for range 200 {
					s.mustGet(tagged(1)) // another tag is no news of this one
					if digest, status := s.pull(0); digest != old || status != http.StatusOK {
						t.Fatalf("a pull got %s: %d, want the old image", digest, status)
					}
					time.Sleep(time.Minute)
				}
				s.hub.ClearFaults()
				time.Sleep(time.Hour)
				s.pull(0) // behind which the layers are tried again
				time.Sleep(time.Second)
				if digest, status := s.pull(0); digest != moved || status != http.StatusOK {
					t.Errorf("at the end a pull got %s: %d, want the new image", digest, status)
				}
			})
		})
	}
}

// One tag whose check hangs, at a hub that answers all others: one client waits
// for it, and none after him for as long as that lasts, whatever he asks for.
func TestATagWhoseCheckHangsIsWaitedForOnce(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
		s.push(2)
		s.mustGet(tagged(0))
		s.mustGet(tagged(1))
		time.Sleep(time.Hour)
		hang := s.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Method: http.MethodHead, Reference: "0"}, Effect: ocitest.Hang()})
		slow := 0
		for range 1200 {
			for i := range 2 {
				r := s.mustGet(tagged(i))
				if i == 0 && r.mark != "stale" {
					t.Fatalf("it is a %s, want stale: %s", r.mark, r.header.Get("Warning"))
				}
				if r.after > 0 {
					slow++
				}
			}
			time.Sleep(3 * time.Second)
		}
		if slow != 1 {
			t.Errorf("%d pulls had to wait, want the first alone", slow)
		}
		hang.Remove()
		time.Sleep(time.Minute)
		s.mustGet(tagged(0))
		time.Sleep(time.Second)
		if r := s.mustGet(tagged(0)); r.mark != "hit" {
			t.Errorf("once it is answered again: %s", r.mark)
		}
	})
}

// A held tag is served while its client waits for headers, whatever the two bounds
// are set to.
func TestAHeldTagIsServedWithinTheDeadline(t *testing.T) {
	t.Parallel()
	for _, settings := range [][]string{
		{"ENTREPOT_HEADER_TIMEOUT=1s"},
		{"ENTREPOT_HEADER_TIMEOUT=2s"},
		{"ENTREPOT_HEADER_TIMEOUT=3s", "ENTREPOT_CHECK_WAIT=1.5s"},
	} {
		simulated(t, ocitest.Habits{}, settings, func(s *simulation) {
			s.push(1)
			s.mustGet(tagged(0))
			time.Sleep(time.Hour)
			s.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Method: http.MethodHead}, Effect: ocitest.Hang()})
			if r := s.mustGet(tagged(0)); r.mark != "stale" {
				t.Errorf("%q: it is a %s after %v, want stale", settings, r.mark, r.after)
			}
		})
	}
}

// A wrong password is tried at most sixty times an hour, however many repositories are
// asked for, and whoever forces checks; what is asked for without it costs no more than
// a login would, or, if nobody may read it, next to nothing.
func TestAWrongPasswordForAnHourCostsFewTokens(t *testing.T) {
	t.Parallel()
	const oneLogin = 14 // tokens of 300 s, renewed 30 s before they end
	for _, row := range []struct {
		repos   int
		private bool
		header  []string
		without int // tokens, at most
	}{
		{1, true, nil, 1 + 60},
		{3, true, nil, 3 + 60},
		{3, false, nil, 3 * oneLogin},
		{100, true, nil, 100 + 60},
		{100, true, []string{"Cache-Control", "no-cache"}, 100 + 60},
		{100, false, nil, 100 * oneLogin},
		{100, false, []string{"Cache-Control", "no-cache"}, 100 * oneLogin},
	} {
		simulated(t, ocitest.Habits{}, []string{"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=wrong"}, func(s *simulation) {
			s.hub.AddUser("me", "right")
			want := http.StatusOK
			for i := range row.repos {
				path := fmt.Sprint("library/app", i)
				s.hub.Push(path, "1", ocitest.RandomImage(uint64(i), 10))
				if row.private {
					want = http.StatusForbidden
					s.hub.Private(path, "me")
				}
			}
			for i := range 1200 {
				if r := s.ask(http.MethodGet, fmt.Sprintf("/v2/library/app%d/manifests/1", i%row.repos), row.header...); r.status != want {
					s.t.Fatalf("%d %s, want %d", r.status, r.body, want)
				}
				time.Sleep(3 * time.Second)
			}
			with, without := 0, 0
			for _, r := range s.hub.Requests() {
				switch _, _, ok := (&http.Request{Header: r.Header}).BasicAuth(); {
				case ok:
					with++
				case r.Role == ocitest.Token:
					without++
				}
			}
			if with < 5 || with > 60 || without > row.without {
				s.t.Errorf("%+v: %d requests with the password and %d for tokens without, want at most 60 and %d", row, with, without, row.without)
			}
		})
	}
}

// A fleet whose images cost five times what the quota allows gets all of them in
// five windows, told the truth about when to come again.
func TestAFleetGetsAllItsImagesInAsFewWindowsAsThereCanBe(t *testing.T) {
	t.Parallel()
	const images, limit, nodes, window = 500, 100, 3, 6 * time.Hour
	simulated(t, ocitest.Habits{PullLimit: limit}, []string{"ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_RATE=0"}, func(s *simulation) {
		s.push(images)
		ctx, cancel := context.WithCancel(s.t.Context())
		var refills sync.WaitGroup
		refills.Go(func() {
			for {
				select {
				case <-time.After(window):
					s.hub.RefillQuota()
				case <-ctx.Done():
					return
				}
			}
		})
		began := time.Now()
		var fleet sync.WaitGroup
		for node := range nodes {
			fleet.Go(func() {
				for i := range images {
					s.getPatiently(tagged((i + node*images/nodes) % images))
				}
			})
		}
		fleet.Wait()
		took := time.Since(began)
		cancel()
		refills.Wait()
		counted := s.hub.CountedPulls()
		if counted != images {
			t.Errorf("%d counted pulls for %d images", counted, images)
		}
		if windows := (counted + limit - 1) / limit; took >= time.Duration(windows)*window {
			t.Errorf("it took %v, want less than the %d windows that %d pulls need", took, windows, counted)
		}
	})
}

// getPatiently comes again when it is told to.
func (s *simulation) getPatiently(uri string) {
	for {
		r := s.ask(http.MethodGet, uri)
		if r.status == http.StatusOK {
			return
		}
		seconds, err := strconv.Atoi(r.header.Get("Retry-After"))
		if r.status != http.StatusTooManyRequests || err != nil || seconds < 1 {
			s.t.Errorf("%s: %d, Retry-After %q: %s", uri, r.status, r.header.Get("Retry-After"), r.body)
			return
		}
		time.Sleep(time.Duration(seconds) * time.Second)
	}
}

// Who is told when to come again is told the truth at any time, from memory.
func TestRetryAfterIsWhatIsLeft(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ status, seconds int }{{429, 600}, {503, 600}, {429, 6 * 3600}} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			t.Parallel()
			effect := ocitest.RetryLater(tt.status, strconv.Itoa(tt.seconds))
			simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
				s.push(2)
				s.hub.Inject(&ocitest.Fault{Match: ocitest.Match{Role: ocitest.Registry}, Effect: effect})
				for left := tt.seconds; left > 0; left -= tt.seconds / 6 {
					for i := range 2 {
						r := s.ask(http.MethodGet, tagged(i))
						after, _ := strconv.Atoi(r.header.Get("Retry-After"))
						if after < left || after > left+1 { // a probe is given a moment to be answered
							t.Errorf("%d of %d s before the end: %d, come again in %q: %s", left, tt.seconds, r.status, r.header.Get("Retry-After"), r.body)
						}
					}
					if n := s.hub.Count(ocitest.Match{Role: ocitest.Registry}); n > 2 {
						t.Errorf("%d requests: %q", n, s.hub.Lines())
					}
					if left == tt.seconds/6 {
						s.hub.ClearFaults()
					}
					time.Sleep(time.Duration(tt.seconds/6) * time.Second)
				}
				time.Sleep(time.Second)
				for i := range 2 {
					s.mustGet(tagged(i))
				}
			})
		})
	}
}

// TestABlackHole: the first pull of a held tag takes as long as a check may, the
// next ones no time, and nobody dials for them, for as long as it lasts. What is
// held stays.
func TestABlackHole(t *testing.T) {
	t.Parallel()
	simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
		const tags = 20
		s.push(tags)
		for i := range tags {
			s.mustGet(tagged(i))
		}
		time.Sleep(time.Hour)
		s.hole.Store(true)
		s.hub.Close() // connections that are open end as well
		if r := s.mustGet(tagged(0)); r.mark != "stale" || r.after > 2*time.Second {
			t.Errorf("the first pull is a %s after %v, want stale within 2 s", r.mark, r.after)
		}
		for range 30 { // the check goes on behind it, and fails
			for i := range 5 {
				if r := s.mustGet(tagged(i)); r.mark != "stale" || r.after > 0 {
					t.Fatalf("tag %d is a %s after %v, want stale at once", i, r.mark, r.after)
				}
			}
			time.Sleep(time.Second)
		}
		for day := range 3 {
			synctest.Wait()
			before := s.dials.Load()
			for range 10 {
				for i := range tags {
					if r := s.mustGet(tagged(i)); r.mark != "stale" || r.after > 0 {
						t.Fatalf("day %d: tag %d is a %s after %v, want stale at once", day, i, r.mark, r.after)
					}
				}
			}
			if n := s.dials.Load() - before; n > 0 {
				t.Errorf("day %d: pulls of held tags dialled %d times", day, n)
			}
			time.Sleep(24 * time.Hour) // nobody asks for anything
		}
	})
}

// Of many repositories, whose tokens have all ended, only the first pull is slow: a
// token service and its registry that hang do not cost a wait each.
func TestABlackHoleOfManyRepositories(t *testing.T) {
	t.Parallel()
	for _, dials := range []bool{true, false} { // no connection, or no answer
		for _, every := range []time.Duration{time.Millisecond, time.Second, 3 * time.Second, 11 * time.Second, 5 * time.Minute} {
			t.Run(fmt.Sprint(dials, every), func(t *testing.T) {
				t.Parallel()
				simulated(t, ocitest.Habits{}, nil, func(s *simulation) {
					const repositories = 30
					at := func(i int) string { return fmt.Sprintf("/v2/library/app%d/manifests/latest", i) }
					for i := range repositories {
						s.hub.Push(fmt.Sprint("library/app", i), "latest", ocitest.RandomImage(uint64(i), 10))
						s.mustGet(at(i))
					}
					time.Sleep(time.Hour)
					if dials {
						s.hole.Store(true)
						s.hub.Close() // connections that are open end as well
					} else {
						s.hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
					}
					for i := range repositories {
						most := time.Duration(0)
						if i == 0 {
							most = 2 * time.Second
						}
						if r := s.mustGet(at(i)); r.mark != "stale" || r.after > most {
							t.Errorf("pull %d is a %s after %v, want stale within %v", i, r.mark, r.after, most)
						}
						time.Sleep(every)
					}
				})
			})
		}
	}
}

// A registry falls silent, its token service, or both: who asks first waits, for
// whatever it is, and then nobody for as long as that lasts, alone or in a crowd,
// though each repository has a token and questions of its own, and many of them are
// on their way when the first of them fails. Where whatever else is asked is answered,
// probes too, it takes one wait more to know.
func TestACrowdWaitsForAMuteUpstreamOnce(t *testing.T) {
	t.Parallel()
	const live, ended, revoked = 2 * time.Second, time.Hour, 3 * time.Second // what tokens are by then
	registry, tokens := ocitest.Match{Role: ocitest.Registry}, ocitest.Match{Role: ocitest.Token}
	var content []ocitest.Match
	for _, kind := range []ocitest.Kind{ocitest.Manifest, ocitest.Tags, ocitest.Referrers} {
		content = append(content, ocitest.Match{Role: ocitest.Registry, Kind: kind})
	}
	for _, row := range []struct {
		name   string
		silent []ocitest.Match
		idle   time.Duration
		waits  int
	}{
		{"all, tokens live", []ocitest.Match{{}}, live, 1},
		{"all, tokens ended", []ocitest.Match{{}}, ended, 1},
		{"registry, tokens live", []ocitest.Match{registry}, live, 1},
		{"registry, tokens ended", []ocitest.Match{registry}, ended, 1},
		{"token service, tokens ended", []ocitest.Match{tokens}, ended, 1},
		{"token service, tokens revoked", []ocitest.Match{tokens}, revoked, 1},
		{"all content, tokens live", content, live, 2},
		{"all content, tokens ended", content, ended, 2},
	} {
		for _, first := range []string{"tag", "tags", "referrers"} {
			t.Run(row.name+", "+first+" first", func(t *testing.T) {
				t.Parallel()
				simulated(t, ocitest.Habits{Referrers: true}, []string{"ENTREPOT_TAG_TTL=1s"}, func(s *simulation) {
					waves := []time.Duration{0, 2, 5, 10, 11, 12, 15, 20, 21, 22, 30, 31, 60, 120}
					for i := range 2 * len(waves) {
						s.hub.Push(fmt.Sprint("library/app", i), "1", ocitest.RandomImage(uint64(i), 10))
					}
					s.crowd(2*len(waves), 1, "tag", "tags", "referrers")
					time.Sleep(row.idle)
					if row.idle == revoked {
						s.hub.ExpireTokens()
					}
					for _, match := range row.silent {
						s.hub.Inject(&ocitest.Fault{Match: match, Effect: ocitest.Hang()})
					}
					began, waits := time.Now(), []string{}
					for i, at := range waves {
						// A moment after what fails ten seconds after an earlier wave, or it is luck who comes first.
						time.Sleep(time.Until(began.Add(at*time.Second + time.Duration(i)*time.Millisecond)))
						asked := time.Now()
						if i == 0 {
							s.crowd(1, 5, first)
						} else { // for some that nobody has asked for yet, too
							s.crowd(2*i+1, 1, "tag", "HEAD", "tags", "referrers")
						}
						if waited := time.Since(asked); waited > 0 {
							waits = append(waits, fmt.Sprintf("%v after %v", waited, asked.Sub(began)))
						}
					}
					if len(waits) == 0 || len(waits) > row.waits || waits[0] != "2s after 0s" {
						t.Errorf("somebody waited %q, want %d times at most, 2s at first", waits, row.waits)
					}
				})
			})
		}
	}
}

// crowd asks for things in the first n repositories called app, several clients for
// each at once, and returns when all have them.
func (s *simulation) crowd(n, clients int, things ...string) {
	s.t.Helper()
	var asking sync.WaitGroup
	for i := range n {
		at := fmt.Sprintf("/v2/library/app%d/", i)
		uris := map[string]string{
			"tag": at + "manifests/1", "HEAD": at + "manifests/1", "tags": at + "tags/list",
			"referrers": at + "referrers/" + ocitest.RandomImage(uint64(i), 10).Digest.String(),
		}
		for _, thing := range things {
			method := http.MethodGet
			if thing == "HEAD" {
				method = thing
			}
			for range clients {
				asking.Go(func() {
					if r := s.ask(method, uris[thing]); r.status != http.StatusOK {
						s.t.Errorf("%s %s: %d %s", method, uris[thing], r.status, r.body)
					}
				})
			}
		}
	}
	asking.Wait()
}

// No request stays without headers for longer than the bound, whatever is wrong
// and whatever is asked for; trouble is not told as 404, and who is told to come
// again is told when.
func TestNobodyWaitsInSilence(t *testing.T) {
	t.Parallel()
	type fault struct {
		name   string
		match  ocitest.Match
		effect ocitest.Effect
		hole   bool
	}
	image := ocitest.RandomImage(1, 2000) // which comes ten bytes at a time where it stalls
	questions := map[string]string{
		"tag": tagged(1), "manifest": "/v2/library/app/manifests/" + image.Digest.String(), "blob": "/v2/library/app/blobs/" + image.Blobs[1].Digest.String(),
		"tags": "/v2/library/app/tags/list", "referrers": "/v2/library/app/referrers/" + image.Digest.String(),
	}
	for _, f := range []fault{
		{name: "dial", hole: true},
		{name: "headers", match: ocitest.Match{Role: ocitest.Registry}, effect: ocitest.Hang()},
		{name: "token", match: ocitest.Match{Role: ocitest.Token}, effect: ocitest.Hang()},
		{name: "CDN", match: ocitest.Match{Role: ocitest.CDN}, effect: ocitest.Hang()},
		{name: "first byte", effect: ocitest.Stall(0)},
		{name: "stall", effect: ocitest.Stall(10)},
		{name: "429 for long", effect: ocitest.RetryLater(429, "3600")},
		{name: "429 for a while", effect: ocitest.RetryLater(429, "9")},
		{name: "429 for ever", effect: ocitest.Answer(429)},
		{name: "503", effect: ocitest.RetryLater(503, "600")},
		{name: "500", effect: ocitest.Answer(500)},
		{name: "reset", effect: ocitest.Reset()},
		{name: "page", effect: ocitest.HTML(200)},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			for _, method := range []string{http.MethodGet, http.MethodHead} {
				for what, uri := range questions {
					simulated(t, ocitest.Habits{Referrers: true}, nil, func(s *simulation) {
						s.hub.Push("library/app", "1", image)
						s.hole.Store(f.hole)
						if !f.hole {
							s.hub.Inject(&ocitest.Fault{Match: f.match, Effect: f.effect})
						}
						for try := range 3 {
							r := s.ask(method, uri)
							name := fmt.Sprintf("%s of %s, try %d", method, what, try)
							if r.after > 15*time.Second {
								t.Errorf("%s: headers after %v", name, r.after)
							}
							retry := r.header.Get("Retry-After")
							switch {
							case r.status == http.StatusOK: // what the fault did not concern, or cut
								if method == http.MethodGet && r.err == nil && strings.Contains(uri, "sha256:") && what != "referrers" && oci.Sum(r.body).String() != uri[strings.Index(uri, "sha256:"):] {
									t.Errorf("%s: a wrong 200: %d bytes, %v", name, len(r.body), r.header)
								}
							case r.status < 429 || r.status == http.StatusInternalServerError:
								t.Errorf("%s: %d %s", name, r.status, r.body)
							case (r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable) && retry == "":
								t.Errorf("%s: %d without Retry-After", name, r.status)
							}
						}
					})
				}
			}
		})
	}
}

// TestWhatUpstreamHasDeleted: by policy a tag goes with its original, for good, as
// far as upstream says so: also where it does not tell a deleted repository from a
// private one. A login that has gone bad is no such word.
func TestWhatUpstreamHasDeleted(t *testing.T) {
	t.Parallel()
	account := []string{"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=right"}
	for _, row := range []struct {
		name    string
		habits  ocitest.Habits
		login   []string
		change  func(*ocitest.Hub)
		dropped bool
		status  int // where it is dropped
	}{
		{"the tag", ocitest.Habits{}, nil, func(h *ocitest.Hub) { h.Untag("library/app", "0") }, true, 404},
		{"the repository", ocitest.Habits{}, nil, func(h *ocitest.Hub) { h.Delete("library/app") }, true, 403},
		{"the repository, asked by an account", ocitest.Habits{}, account, func(h *ocitest.Hub) { h.Delete("library/app") }, true, 403},
		{"made private", ocitest.Habits{}, nil, func(h *ocitest.Hub) { h.Private("library/app", "them") }, true, 403},
		{"given to another account", ocitest.Habits{}, account, func(h *ocitest.Hub) { h.Private("library/app", "them") }, true, 403},
		{"the repository, told by the token service", ocitest.Habits{DenyToken: 403}, nil, func(h *ocitest.Hub) { h.Delete("library/app") }, true, 403},
		{"the password is wrong", ocitest.Habits{}, account, func(h *ocitest.Hub) { h.AddUser("me", "changed"); h.ExpireTokens() }, false, 0},
		{"the token service refuses the account", ocitest.Habits{DenyToken: 403}, account, func(h *ocitest.Hub) { h.Private("library/app", "them") }, false, 0},
		{"the registry wants a password, and refuses it", ocitest.Habits{Auth: ocitest.BasicAuth}, account, func(h *ocitest.Hub) { h.AddUser("me", "changed") }, false, 0},
		{"a wall answers 403", ocitest.Habits{}, nil, func(h *ocitest.Hub) {
			h.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest}, Effect: ocitest.HTML(403)})
		}, false, 0},
		{"something before it answers 404", ocitest.Habits{}, nil, func(h *ocitest.Hub) {
			h.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest}, Effect: ocitest.HTML(404)})
		}, false, 0},
		{"it believes no token any more", ocitest.Habits{}, nil, func(h *ocitest.Hub) {
			h.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Manifest}, Effect: ocitest.Effect{Do: "answer", Status: 401, Body: "{}", Header: http.Header{
				"Www-Authenticate": {`Bearer realm="` + h.TokenURL() + `/token",service="registry.docker.io",scope="repository:library/app:pull",error="invalid_token"`},
			}}})
		}, false, 0},
	} {
		for _, keep := range []bool{true, false} {
			settings := append([]string{"ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_KEEP_DELETED=" + strconv.FormatBool(keep)}, row.login...)
			simulated(t, row.habits, settings, func(s *simulation) {
				s.hub.AddUser("me", "right")
				s.push(1)
				if row.login != nil {
					s.hub.Private("library/app", "me")
				}
				want := func(when string, status int, mark string) {
					t.Helper()
					if r := s.ask(http.MethodGet, tagged(0)); r.status != status || r.mark != mark {
						t.Errorf("%s, kept %t, %s: %d %q, want %d %q: %s", row.name, keep, when, r.status, r.mark, status, mark, r.body)
					}
				}
				want("at first", 200, "miss")
				row.change(s.hub)
				time.Sleep(time.Hour) // beyond the TTL and the life of a token
				gone := row.dropped && !keep
				status, mark := 200, "stale"
				if gone {
					status, mark = row.status, ""
				}
				want("changed", status, mark)
				want("asked again", status, mark)
				time.Sleep(time.Hour)
				s.hub.ClearFaults()
				s.hub.Inject(&ocitest.Fault{Effect: ocitest.Answer(503)})
				if gone {
					status = 503
				}
				want("in an outage", status, mark)
			})
		}
	}
}
