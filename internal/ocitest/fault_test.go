package ocitest_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"entrepot/internal/ocitest"
)

// TestEffects shows what each way to fail looks like on the wire.
func TestEffects(t *testing.T) {
	blob := ocitest.Blob(1, 200_000)
	whole := blob.Bytes()
	broken := bytes.Clone(whole)
	broken[150_000] ^= 0xff
	tests := map[string]struct {
		effect ocitest.Effect
		status int
		length string // Content-Length
		body   []byte // nil: not compared
		cut    bool
	}{
		"corrupt":     {ocitest.Corrupt(150_000), 200, "200000", broken, false},
		"cut":         {ocitest.Cut(100_000), 200, "200000", whole[:100_000], true},
		"cut at zero": {ocitest.Cut(0), 200, "200000", whole[:0], true},
		"short":       {ocitest.Short(1), 200, "199999", whole[:199_999], false},
		"surplus":     {ocitest.Surplus(7), 200, "200007", nil, false},
		"answer":      {ocitest.Answer(503), 503, "62", nil, false},
		"html":        {ocitest.HTML(500), 500, "103", nil, false},
		"retry later": {ocitest.RetryLater(429, "7"), 429, "70", nil, false},
		"quota":       {ocitest.QuotaSpent(), 429, "150", nil, false},
		"abuse":       {ocitest.AbuseLimit(), 429, "27", []byte("Too Many Requests (HAP429)\n"), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			hub := ocitest.NewHub(t, open(true))
			hub.PushBlob("a/b", blob)
			fault := hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.BlobKind}, Effect: test.effect, Times: 1})
			url := hub.URL() + "/v2/a/b/blobs/" + blob.Digest.String()
			res, body, err := get(t, "GET", url)
			if res == nil {
				t.Fatalf("no answer: %v", err)
			}
			if res.StatusCode != test.status || res.Header.Get("Content-Length") != test.length || (err != nil) != test.cut {
				t.Errorf("got %d, Content-Length %s, %v; want %d, %s, cut %v", res.StatusCode, res.Header.Get("Content-Length"), err, test.status, test.length, test.cut)
			}
			if test.body != nil && !bytes.Equal(body, test.body) {
				t.Errorf("got %d other bytes, want %d", len(body), len(test.body))
			}
			if got := hub.Requests()[0].Fault; got != fault.Name {
				t.Errorf("the record says fault %q, want %q", got, fault.Name)
			}
			if res, _, err := get(t, "GET", url); err != nil || res.StatusCode != http.StatusOK {
				t.Errorf("once over, the fault is still there: %v", err)
			}
		})
	}
}

func TestResetGivesNoAnswer(t *testing.T) {
	hub := ocitest.NewHub(t, open(true))
	hub.Inject(&ocitest.Fault{Match: ocitest.Match{Kind: ocitest.Ping}, Effect: ocitest.Reset()})
	if res, _, err := get(t, "GET", hub.URL()+"/v2/"); err == nil {
		t.Errorf("got %s, want a closed connection", res.Status)
	}
}

// TestFaultsCountAndSkip: the second and third GET of the blob at the CDN fail,
// and nothing else.
func TestFaultsCountAndSkip(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{Auth: ocitest.NoAuth}})
	blob := ocitest.Blob(1, 10)
	hub.PushBlob("a/b", blob)
	fault := hub.Inject(&ocitest.Fault{
		Name: "flaky CDN", Match: ocitest.Match{Role: ocitest.CDN, Method: "GET"}, Effect: ocitest.Answer(500), Skip: 1, Times: 2,
	})
	var got []int
	for range 4 {
		res, _, err := get(t, "GET", hub.URL()+"/v2/a/b/blobs/"+blob.Digest.String())
		if err != nil {
			t.Fatal(err)
		}
		res, _, err = get(t, "GET", res.Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, res.StatusCode)
	}
	if diff := cmp.Diff([]int{200, 500, 500, 200}, got); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	if fault.Hits() != 2 {
		t.Errorf("the fault acted %d times, want 2", fault.Hits())
	}
}

func TestHangAndStallLastUntilReleased(t *testing.T) {
	for name, effect := range map[string]ocitest.Effect{"hang": ocitest.Hang(), "stall": ocitest.Stall(4), "stall at the end": ocitest.Stall(10)} {
		t.Run(name, func(t *testing.T) {
			hub := ocitest.NewHub(t, open(true))
			blob := ocitest.Blob(1, 10)
			hub.PushBlob("a/b", blob)
			fault := hub.Inject(&ocitest.Fault{Effect: effect})
			done := make(chan string)
			go func() {
				_, body, err := get(t, "GET", hub.URL()+"/v2/a/b/blobs/"+blob.Digest.String())
				done <- fmt.Sprint(len(body), err)
			}()
			if err := hub.Await(t.Context(), ocitest.Match{Kind: ocitest.BlobKind}, 1); err != nil {
				t.Fatal(err)
			}
			if effect.N < 10 { // else the client has every byte, and the stall holds up the server alone
				select {
				case got := <-done:
					t.Fatalf("answered %s before the release", got)
				default:
				}
			}
			fault.Release()
			if got, want := <-done, "10 <nil>"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		})
	}
}

// TestCloseReleasesWhoIsHeld: no test hangs because it forgot a fault.
func TestCloseReleasesWhoIsHeld(t *testing.T) {
	hub, err := ocitest.Start(open(true))
	if err != nil {
		t.Fatal(err)
	}
	hub.Inject(&ocitest.Fault{Effect: ocitest.Hang()})
	done := make(chan error)
	go func() {
		_, _, err := get(t, "GET", hub.URL()+"/v2/")
		done <- err
	}()
	if err := hub.Await(t.Context(), ocitest.Match{}, 1); err != nil {
		t.Fatal(err)
	}
	hub.Close()
	if <-done == nil {
		t.Error("a held request was answered by a closed hub")
	}
}

// TestGateDecidesWhatAReaderHasSeen drives a body byte by byte, also when it
// starts at an offset.
func TestGateDecidesWhatAReaderHasSeen(t *testing.T) {
	hub := ocitest.NewHub(t, open(true))
	blob := ocitest.Blob(1, 100_000)
	hub.PushBlob("a/b", blob)
	gate := hub.Gate(ocitest.Match{Kind: ocitest.BlobKind})
	req, err := http.NewRequestWithContext(t.Context(), "GET", hub.URL()+"/v2/a/b/blobs/"+blob.Digest.String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Range", "bytes=10-")
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	for _, step := range []int64{11, 12, 70_000} {
		if err := gate.AwaitHeld(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		before := hub.Sent(ocitest.Match{})
		gate.To(step)
		if _, err := io.ReadFull(res.Body, make([]byte, step-10-before)); err != nil {
			t.Fatal(err)
		}
		if err := gate.AwaitHeld(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		if got, want := hub.Sent(ocitest.Match{}), step-10; got != want {
			t.Errorf("sent with the gate at %d: got %d bytes, want %d", step, got, want)
		}
	}
	gate.Open()
	if rest, err := io.ReadAll(res.Body); err != nil || len(rest) != 30_000 {
		t.Errorf("after the gate: %d bytes, %v", len(rest), err)
	}
}

func TestRanges(t *testing.T) {
	hub := ocitest.NewHub(t, open(true))
	blob := ocitest.Blob(1, 100)
	whole := blob.Bytes()
	hub.PushBlob("a/b", blob)
	url := hub.URL() + "/v2/a/b/blobs/" + blob.Digest.String()
	for _, test := range []struct {
		asked, answered string
		status          int
		body            []byte
	}{
		{"bytes=0-9", "bytes 0-9/100", 206, whole[:10]},
		{"bytes=90-", "bytes 90-99/100", 206, whole[90:]},
		{"bytes=-5", "bytes 95-99/100", 206, whole[95:]},
		{"bytes=95-200", "bytes 95-99/100", 206, whole[95:]},
		{"bytes=100-", "bytes */100", 416, nil},
		{"bytes=0-1,5-6", "", 200, whole},
		{"bytes=9-1", "", 200, whole},
		{"lines=1-2", "", 200, whole},
	} {
		res, body, err := get(t, "GET", url, "Range", test.asked)
		if err != nil {
			t.Fatal(err)
		}
		if res.StatusCode != test.status || res.Header.Get("Content-Range") != test.answered || test.body != nil && !bytes.Equal(body, test.body) {
			t.Errorf("%s: got %d %q, want %d %q", test.asked, res.StatusCode, res.Header.Get("Content-Range"), test.status, test.answered)
		}
	}
	hub.Set(func(h *ocitest.Habits) { h.IgnoreRange = true })
	if res, body, _ := get(t, "GET", url, "Range", "bytes=90-"); res.StatusCode != 200 || len(body) != 100 {
		t.Errorf("a hub that ignores Range answered %d with %d bytes", res.StatusCode, len(body))
	}
}

// TestQuotaCountsGetsOfManifests: HEAD is free, also when the quota is spent.
func TestQuotaCountsGetsOfManifests(t *testing.T) {
	cfg := open(true)
	cfg.PullLimit = 2
	hub := ocitest.NewHub(t, cfg)
	hub.Push("a/b", "v1", ocitest.RandomImage(1, 10))
	var got []string
	for _, method := range []string{"HEAD", "GET", "GET", "GET", "HEAD"} {
		res, _, err := get(t, method, hub.URL()+"/v2/a/b/manifests/v1")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, method+" "+strconv.Itoa(res.StatusCode)+" "+res.Header.Get("Ratelimit-Remaining"))
	}
	want := []string{"HEAD 200 2;w=21600", "GET 200 1;w=21600", "GET 200 0;w=21600", "GET 429 0;w=21600", "HEAD 200 0;w=21600"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("quota (-want +got):\n%s", diff)
	}
	hub.RefillQuota()
	if res, _, _ := get(t, "GET", hub.URL()+"/v2/a/b/manifests/v1"); res.StatusCode != 200 {
		t.Errorf("after the window: %d", res.StatusCode)
	}
}

// token logs in as ann, if a password is given, and asks for a/b.
func token(t *testing.T, hub *ocitest.Hub, password string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", hub.TokenURL()+"/token?service=registry.docker.io&scope=repository:a/b:pull", nil)
	if err != nil {
		t.Fatal(err)
	}
	if password != "" {
		req.SetBasicAuth("ann", password)
	}
	res, body, err := get(t, "GET", req.URL.String(), "Authorization", req.Header.Get("Authorization"))
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 200 {
		return res.Status
	}
	return tokenIn(string(body))
}

func tokenIn(body string) string {
	_, value, _ := strings.Cut(body, `"token":"`)
	value, _, _ = strings.Cut(value, `"`)
	return value
}

// TestTokensAndSignedURLs walks through everything that can be wrong with a
// credential.
func TestTokensAndSignedURLs(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{URLUses: 2}})
	hub.AddUser("ann", "secret")
	blob := ocitest.Blob(1, 10)
	hub.PushBlob("a/b", blob)
	hub.Private("a/b", "ann")
	url := hub.URL() + "/v2/a/b/blobs/" + blob.Digest.String()
	status := func(method, url string, header ...string) int {
		t.Helper()
		res, _, err := get(t, method, url, header...)
		if err != nil {
			t.Fatal(err)
		}
		return res.StatusCode
	}

	if got := token(t, hub, "wrong"); got != "401 Unauthorized" {
		t.Errorf("a wrong password got %s", got)
	}
	if got := status("GET", url, "Authorization", "Bearer "+token(t, hub, "")); got != 401 {
		t.Errorf("an anonymous token opened a private repository: %d", got)
	}
	bearer := "Bearer " + token(t, hub, "secret")
	res, _, err := get(t, "GET", url, "Authorization", bearer)
	if err != nil || res.StatusCode != 307 {
		t.Fatalf("got %v, %v; want a redirect", res, err)
	}
	signed := res.Header.Get("Location")
	if got := status("GET", signed, "Authorization", bearer); got != 400 {
		t.Errorf("the CDN took a request with Authorization: %d", got)
	}
	if got := status("HEAD", signed); got != 403 {
		t.Errorf("the CDN took a URL signed for GET with HEAD: %d", got)
	}
	var uses []int
	for range 3 {
		uses = append(uses, status("GET", signed))
	}
	if diff := cmp.Diff([]int{200, 200, 403}, uses); diff != "" {
		t.Errorf("uses of a signed URL (-want +got):\n%s", diff)
	}
	hub.ExpireTokens()
	if got := status("GET", url, "Authorization", bearer); got != 401 {
		t.Errorf("an expired token was taken: %d", got)
	}
	if got := hub.Requests()[len(hub.Requests())-2]; got.Account != "" || got.Status != 403 {
		t.Errorf("record of the refused URL: %+v", got)
	}
}

// TestQuirksOfTokens: those that only some registries have.
func TestQuirksOfTokens(t *testing.T) {
	hub := ocitest.NewHub(t, ocitest.Config{Habits: ocitest.Habits{
		TokenField: "access_token", NoExpiresIn: true, FirstScopeOnly: true, TokenUses: 1, RedirectTo: "https://elsewhere.example", Realm: "https://realm.example/t",
	}})
	blob := ocitest.Blob(1, 10)
	hub.PushBlob("a/b", blob)
	hub.PushBlob("a/c", blob)
	_, body, err := get(t, "GET", hub.TokenURL()+"/token?scope=repository:a/b:push,pull&scope=repository:a/c:pull")
	if err != nil || strings.Contains(string(body), `"token"`) || strings.Contains(string(body), "expires_in") {
		t.Fatalf("got %s, %v", body, err)
	}
	_, value, _ := strings.Cut(string(body), `"access_token":"`)
	value, _, _ = strings.Cut(value, `"`)
	ask := func(repo string) *http.Response {
		t.Helper()
		res, _, err := get(t, "GET", hub.URL()+"/v2/"+repo+"/blobs/"+blob.Digest.String(), "Authorization", "Bearer "+value)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	if res := ask("a/c"); res.StatusCode != 401 || !strings.Contains(res.Header.Get("Www-Authenticate"), `Bearer realm="https://realm.example/t",service="registry.docker.io",scope="repository:a/c:pull",error="insufficient_scope"`) {
		t.Errorf("the second scope: got %d, %s", res.StatusCode, res.Header.Get("Www-Authenticate"))
	}
	if res := ask("a/b"); res.StatusCode != 307 || !strings.HasPrefix(res.Header.Get("Location"), "https://elsewhere.example/registry-v2/") {
		t.Errorf("the first scope: got %d to %s", res.StatusCode, res.Header.Get("Location"))
	}
	if res := ask("a/b"); res.StatusCode != 401 {
		t.Errorf("a token that was used up: got %d", res.StatusCode)
	}
}
