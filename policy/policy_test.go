package policy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"entrepot/oci"
)

var app = oci.Repository{Host: "docker.io", Path: "team/app"}

// source is a small true Source, which counts what it is asked.
type source struct {
	tags      map[string]oci.Digest
	manifests map[oci.Digest]oci.Manifest
	blobs     map[oci.Digest][]byte
	fail      error // of Manifest
	asked     []string
}

func newSource() *source {
	return &source{tags: map[string]oci.Digest{}, manifests: map[oci.Digest]oci.Manifest{}, blobs: map[oci.Digest][]byte{}}
}

// push makes an image of one layer, whose config claims a platform and a date.
func (s *source) push(tag, platform, created string, layer int64) oci.Digest {
	os, arch, _ := strings.Cut(platform, "/")
	config := fmt.Appendf(nil, `{"os":%q,"architecture":%q,"created":%q}`, os, arch, created)
	s.blobs[oci.Sum(config)] = config
	return s.pushManifest(tag, "application/vnd.oci.image.manifest.v1+json", fmt.Sprintf(
		`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},"layers":[{"digest":%q,"size":%d}]}`,
		oci.Sum(config), len(config), oci.Sum([]byte(tag)), layer))
}

func (s *source) pushManifest(tag, mediaType, content string) oci.Digest {
	d := oci.Sum([]byte(content))
	s.manifests[d] = oci.Manifest{Descriptor: oci.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(content))}, Content: []byte(content)}
	if tag != "" {
		s.tags[tag] = d
	}
	return d
}

func (s *source) Resolve(_ context.Context, _ oci.Repository, reference string, _ oci.Ask) (oci.Resolved, oci.Outcome, error) {
	s.asked = append(s.asked, "resolve "+reference)
	d, ok := s.tags[reference]
	if !ok {
		return oci.Resolved{}, oci.Outcome{}, oci.ErrManifestUnknown
	}
	return oci.Resolved{Descriptor: s.manifests[d].Descriptor}, oci.Outcome{Cache: oci.Miss, Spent: 1}, nil
}

func (s *source) Manifest(_ context.Context, _ oci.Repository, d oci.Digest, _ oci.Ask) (oci.Manifest, oci.Outcome, error) {
	s.asked = append(s.asked, "manifest")
	m, ok := s.manifests[d]
	switch {
	case s.fail != nil:
		return oci.Manifest{}, oci.Outcome{Spent: 1}, s.fail
	case !ok:
		return oci.Manifest{}, oci.Outcome{}, oci.ErrManifestUnknown
	}
	return m, oci.Outcome{Cache: oci.Miss, Spent: 1}, nil
}

func (s *source) Blob(_ context.Context, _ oci.Repository, d oci.Digest, _ oci.Ask) (oci.Blob, error) {
	s.asked = append(s.asked, "blob")
	return blob{s.blobs[d]}, nil
}

func (s *source) Tags(context.Context, oci.Repository, oci.Page, oci.Ask) (oci.TagList, oci.Outcome, error) {
	return oci.TagList{}, oci.Outcome{}, nil
}

func (s *source) Referrers(context.Context, oci.Repository, oci.Digest, string, oci.Ask) (oci.ReferrerList, oci.Outcome, error) {
	return oci.ReferrerList{}, oci.Outcome{}, nil
}

type blob struct{ content []byte }

func (b blob) Descriptor() oci.Descriptor { return oci.Descriptor{Size: int64(len(b.content))} }
func (b blob) Stat(context.Context) (oci.Descriptor, oci.Outcome, error) {
	return b.Descriptor(), oci.Outcome{}, nil
}

func (b blob) Open(context.Context, int64, int64) (oci.Reader, error) {
	return reader{io.NopCloser(strings.NewReader(string(b.content)))}, nil
}

type reader struct{ io.ReadCloser }

func (reader) Offset() int64        { return 0 }
func (reader) Size() int64          { return -1 }
func (reader) Outcome() oci.Outcome { return oci.Outcome{Spent: 2} }

// resolve asks as a client does by HEAD.
func resolve(g *Guard, reference string) error {
	_, _, err := g.Resolve(context.Background(), app, reference, oci.Ask{})
	return err
}

func TestJudge(t *testing.T) {
	now := time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	tests := map[string]struct {
		rule    Rule
		content string // the manifest
		created string // what it claims
		on      oci.Platform
		lead    Lead
		want    string // part of the reason; empty: allowed
	}{
		"small enough":                   {Rule{MaxSize: 30}, `{"config":{"digest":"D","size":10},"layers":[{"digest":"D","size":20}]}`, "", oci.Platform{}, Lead{}, ""},
		"too large by one":               {Rule{MaxSize: 29}, `{"config":{"digest":"D","size":10},"layers":[{"digest":"D","size":20}]}`, "", oci.Platform{}, Lead{}, "it has 30 bytes, and 29 are allowed"},
		"sizes below zero do not count":  {Rule{MaxSize: 29}, `{"layers":[{"digest":"D","size":-100},{"digest":"D","size":30}]}`, "", oci.Platform{}, Lead{}, "30 bytes"},
		"sizes do not wrap around":       {Rule{MaxSize: 29}, `{"layers":[{"digest":"D","size":9223372036854775807},{"digest":"D","size":9223372036854775807}]}`, "", oci.Platform{}, Lead{}, "29 are allowed"},
		"platform":                       {Rule{Platforms: []string{"linux/amd64"}}, `{}`, "", oci.Platform{OS: "linux", Architecture: "amd64"}, Lead{}, ""},
		"platform in any variant":        {Rule{Platforms: []string{"linux/arm64"}}, `{}`, "", oci.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}, Lead{}, ""},
		"platform in one variant":        {Rule{Platforms: []string{"linux/arm/v7"}}, `{}`, "", oci.Platform{OS: "linux", Architecture: "arm", Variant: "v6"}, Lead{}, "it is for linux/arm/v6"},
		"platform by pattern":            {Rule{Platforms: []string{"linux/*"}}, `{}`, "", oci.Platform{OS: "linux", Architecture: "s390x"}, Lead{}, ""},
		"platform of the index's entry":  {Rule{Platforms: []string{"linux/*"}}, `{}`, "", oci.Platform{OS: "linux", Architecture: "amd64"}, Lead{Platform: oci.Platform{OS: "windows", Architecture: "amd64"}}, "windows/amd64"},
		"no platform, as a chart":        {Rule{Platforms: []string{"linux/*"}}, `{}`, "", oci.Platform{}, Lead{}, ""},
		"an attestation":                 {Rule{Platforms: []string{"linux/*"}}, `{}`, "", oci.Platform{OS: "unknown", Architecture: "unknown"}, Lead{}, ""},
		"index with one that fits":       {Rule{Platforms: []string{"linux/arm64"}}, `{"manifests":[{"digest":"D","platform":{"os":"linux","architecture":"amd64"}},{"digest":"D","platform":{"os":"linux","architecture":"arm64"}}]}`, "", oci.Platform{}, Lead{}, ""},
		"index with none that fits":      {Rule{Platforms: []string{"linux/arm64"}}, `{"manifests":[{"digest":"D","platform":{"os":"linux","architecture":"amd64"}},{"digest":"D","platform":{"os":"unknown","architecture":"unknown"}}]}`, "", oci.Platform{}, Lead{}, "it is for linux/amd64, and only"},
		"index that does not tell":       {Rule{Platforms: []string{"linux/arm64"}}, `{"manifests":[{"digest":"D"}]}`, "", oci.Platform{}, Lead{}, ""},
		"old as it claims":               {Rule{MinAge: 3 * day}, `{}`, "2026-01-28T00:00:00Z", oci.Platform{}, Lead{}, ""},
		"young as it claims":             {Rule{MinAge: 3 * day}, `{}`, "2026-01-28T00:00:01Z", oci.Platform{}, Lead{}, "it is 71h59m59s old, and 3d is the least"},
		"old as we saw":                  {Rule{MinAge: 3 * day}, `{}`, "2026-01-30T00:00:00Z", oci.Platform{}, Lead{Changed: now.Add(-3 * day)}, ""},
		"old as it claims, and not seen": {Rule{MinAge: 3 * day, FromSeen: true}, `{}`, "2020-01-28T00:00:00Z", oci.Platform{}, Lead{Changed: now.Add(-2 * day)}, "it is 2d old"},
		"never seen":                     {Rule{MinAge: 3 * day, FromSeen: true}, `{}`, "2020-01-28T00:00:00Z", oci.Platform{}, Lead{}, "nobody knows"},
		"a claim of 1970":                {Rule{MinAge: 3 * day}, `{}`, "1970-01-01T00:00:00Z", oci.Platform{}, Lead{}, "nobody knows"},
		"a claim of the future":          {Rule{MinAge: 3 * day}, `{}`, "2036-01-01T00:00:00Z", oci.Platform{}, Lead{}, "nobody knows"},
		"an index leaves it to others":   {Rule{MinAge: 3 * day}, `{"manifests":[{"digest":"D"}]}`, "", oci.Platform{}, Lead{}, ""},
		"unless it claims":               {Rule{MinAge: 3 * day}, `{"manifests":[{"digest":"D"}]}`, "2026-01-30T00:00:00Z", oci.Platform{}, Lead{}, "1d old"},
		"or has to have been seen":       {Rule{MinAge: 3 * day, FromSeen: true}, `{"manifests":[{"digest":"D"}]}`, "", oci.Platform{}, Lead{Changed: now.Add(-time.Hour)}, "1h old"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			links, err := oci.ParseLinks([]byte(strings.ReplaceAll(test.content, `"D"`, fmt.Sprintf("%q", oci.Sum(nil)))))
			if err != nil {
				t.Fatal(err)
			}
			got := test.rule.judge(&content{links: links, platform: test.on, created: parseTime(test.created)}, test.lead, now)
			if got != test.want && (test.want == "" || !strings.Contains(got, test.want)) {
				t.Errorf("reason %q, want %q", got, test.want)
			}
		})
	}
}

// TestFirstRuleDecides: by name alone, nothing is asked of what is refused.
func TestFirstRuleDecides(t *testing.T) {
	s := newSource()
	s.push("1", "linux/amd64", "", 10)
	s.push("2", "linux/amd64", "", 10)
	g := New(s, Config{Rules: []Rule{
		{Name: "rule 0", Match: "docker.io/team/app:1"},
		{Name: "rule 1", Match: "docker.io/team/*", Deny: true},
		{Name: "rule 2", Match: "*:1", Deny: true},
	}})
	if err := resolve(g, "1"); err != nil {
		t.Errorf("the first rule allows it: %v", err)
	}
	s.asked = nil
	if err := resolve(g, "2"); !errors.Is(err, oci.ErrDenied) || len(s.asked) > 0 {
		t.Errorf("got %v, and asked %v", err, s.asked)
	}
	if err := resolve(New(s, Config{}), "2"); err != nil {
		t.Errorf("without rules: %v", err)
	}
}

// TestLookingIsCountedAndRemembered: what is spent to judge is told, and the next
// one costs nothing.
func TestLookingIsCountedAndRemembered(t *testing.T) {
	s := newSource()
	d := s.push("1", "linux/amd64", "", 10)
	g := New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*", Platforms: []string{"linux/amd64"}}}})
	_, out, err := g.Resolve(t.Context(), app, "1", oci.Ask{})
	if err != nil || out.Spent != 4 { // the tag, its manifest, and two for the config
		t.Errorf("spent %d, %v", out.Spent, err)
	}
	s.asked = nil
	if _, out, err := g.Manifest(t.Context(), app, d, oci.Ask{}); err != nil || out.Spent != 1 || len(s.asked) != 1 {
		t.Errorf("what is known to be allowed is asked for once: %v, spent %d, %v", s.asked, out.Spent, err)
	}
	other := s.push("", "linux/amd64", "", 20)
	s.asked = nil
	if m, out, err := g.Manifest(t.Context(), app, other, oci.Ask{}); err != nil || out.Spent != 3 || out.Cache != oci.Miss || len(s.asked) != 2 || m.Digest != other {
		t.Errorf("what was looked at is given out: asked %v, %+v, %v", s.asked, out, err)
	}
}

// TestLeadsAreLookedForOnce: it is a look at every tag of the repository.
func TestLeadsAreLookedForOnce(t *testing.T) {
	s := newSource()
	d := s.push("1", "linux/amd64", "", 10)
	for _, rule := range []Rule{{Match: "*:1"}, {Match: "*:1", MaxSize: 1 << 20}, {Match: "ghcr.io/*:1", Deny: true}} {
		looked := 0
		g := New(s, Config{Rules: []Rule{rule}, Leads: func(context.Context, oci.Repository, oci.Digest) []Lead {
			looked++
			return nil
		}})
		first := 0
		for range 5 {
			if err := resolve(g, "1"); err != nil {
				t.Fatal(err)
			}
			if _, _, err := g.Manifest(t.Context(), app, d, oci.Ask{}); err != nil {
				t.Fatal(err)
			}
			if first == 0 {
				first = looked
			}
		}
		if looked != first || first > 2 {
			t.Errorf("%+v: looked %d times at first, and %d in all", rule, first, looked)
		}
	}
}

// TestWhatCannotBeJudgedIsNotServed, nor remembered.
func TestWhatCannotBeJudgedIsNotServed(t *testing.T) {
	s := newSource()
	s.push("1", "linux/amd64", "", 10)
	s.fail = oci.ErrTooManyRequests
	g := New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*", MaxSize: 1 << 20}}})
	if err := resolve(g, "1"); !errors.Is(err, oci.ErrTooManyRequests) {
		t.Errorf("got %v", err)
	}
	s.fail = nil
	if err := resolve(g, "1"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	d := s.pushManifest("odd", "application/vnd.oci.image.manifest.v1+json", `{"layers":7}`)
	if _, _, err := g.Manifest(t.Context(), app, d, oci.Ask{}); oci.CodeOf(err) != oci.BadUpstream {
		t.Errorf("a manifest that nobody can read: %v", err)
	}
}

// TestAnImageThatHidesItsPlatform is not taken for something that runs nowhere.
func TestAnImageThatHidesItsPlatform(t *testing.T) {
	const manifestType, configType = "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json"
	for name, row := range map[string]struct {
		config string
		size   int
		want   string // in the refusal; empty: allowed
	}{
		"too large to be read":    {`{"os":"windows","architecture":"amd64"}`, maxConfig + 1, "does not tell what it is for"},
		"smaller than none":       {`{"os":"windows","architecture":"amd64"}`, -1, "does not tell what it is for"},
		"larger than it says":     {strings.Repeat(" ", maxConfig) + `{"os":"windows","architecture":"amd64"}`, 100, "does not tell what it is for"},
		"no JSON":                 {`os=windows`, 100, "does not tell what it is for"},
		"a signature, as cosign":  {`{"os":"","architecture":""}`, 100, ""},
		"for what is not allowed": {`{"os":"windows","architecture":"amd64"}`, 100, "it is for windows/amd64"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource()
			d := oci.Sum([]byte(row.config))
			s.blobs[d] = []byte(row.config)
			s.pushManifest("1", manifestType, fmt.Sprintf(`{"config":{"mediaType":%q,"digest":%q,"size":%d}}`, configType, d, row.size))
			err := resolve(New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*", Platforms: []string{"linux/*"}}}}), "1")
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
		})
	}
}

// TestRefusalsAreJudgedAgain: what is too young grows older.
func TestRefusalsAreJudgedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSource()
		d := s.push("1", "linux/amd64", time.Now().Format(time.RFC3339), 10)
		g := New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*", MinAge: time.Hour}}})
		if err := resolve(g, "1"); !errors.Is(err, oci.ErrDenied) {
			t.Fatal(err)
		}
		s.asked = nil
		if err := resolve(g, "1"); !errors.Is(err, oci.ErrDenied) || len(s.asked) != 1 {
			t.Errorf("%v, and looked again: %v", err, s.asked)
		}
		time.Sleep(time.Hour)
		if err := resolve(g, "1"); err != nil {
			t.Errorf("an hour later: %v", err)
		}
		if _, _, err := g.Manifest(t.Context(), app, d, oci.Ask{}); err != nil {
			t.Errorf("its manifest: %v", err)
		}
	})
}

// TestSomeTagSuffices: a manifest is what the tags are that lead to it.
func TestSomeTagSuffices(t *testing.T) {
	s := newSource()
	d := s.push("latest", "linux/amd64", "", 10)
	leads := []Lead{{Tag: "latest"}}
	g := New(s, Config{
		Rules: []Rule{{Name: "rule 0", Match: "*:latest", Deny: true}, {Name: "rule 1", Match: "*:[0-9]*"}, {Name: "rule 2", Match: "*", Deny: true}},
		Leads: func(context.Context, oci.Repository, oci.Digest) []Lead { return leads },
	})
	ask := func() error {
		_, _, err := g.Manifest(context.Background(), app, d, oci.Ask{})
		return err
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "rule 0") {
		t.Errorf("by latest alone: %v", err)
	}
	s.tags["1.2"] = d
	if err := resolve(g, "1.2"); err != nil {
		t.Error(err)
	}
	if err := ask(); err != nil {
		t.Errorf("once 1.2 has led to it: %v", err)
	}
	for reference, want := range map[string]string{"latest": "denied by rule 0", "1.2": "allowed by rule 1", d.String(): "allowed by rule 1"} {
		if got, denied := g.Explain(t.Context(), app, reference); !strings.HasPrefix(got, want) || denied != strings.HasPrefix(want, "denied") {
			t.Errorf("%s is explained as %q, want %q", reference, got, want)
		}
	}
	leads = nil
	g.verdicts, g.led = memory[verdict]{}, memory[[]Lead]{}
	if got, denied := g.Explain(t.Context(), app, d.String()); !denied || !strings.HasPrefix(got, "denied by rule 2") {
		t.Errorf("by nothing it is explained as %q", got)
	}
	if err := ask(); err == nil || !strings.Contains(err.Error(), "rule 2") {
		t.Errorf("by nothing: %v", err)
	}
}

// TestBlobsOfAClosedRepository are refused; where something may be pulled, they
// are not.
func TestBlobsOfAClosedRepository(t *testing.T) {
	for _, row := range []struct {
		rules  []Rule
		closed bool
	}{
		{nil, false},
		{[]Rule{{Match: "*", Deny: true}}, true},
		{[]Rule{{Match: "docker.io/team/*", Deny: true}}, true},
		{[]Rule{{Match: "docker.io/team/app:*", Deny: true}}, true},
		{[]Rule{{Match: "docker.io/team/app:1*", Deny: true}}, false},
		{[]Rule{{Match: "*:latest", Deny: true}}, false},
		{[]Rule{{Match: "*:[0-9]*"}, {Match: "*", Deny: true}}, false},
		{[]Rule{{Match: "docker.io/other/app:1"}, {Match: "*", Deny: true}}, true},
		{[]Rule{{Match: "docker.io/team/*"}, {Match: "*", Deny: true}}, false},
		{[]Rule{{Match: "docker.io/team/*", MinAge: time.Hour}, {Match: "*", Deny: true}}, false},
		{[]Rule{{Match: "ghcr.io/*"}, {Match: "*", Deny: true}}, true},
	} {
		g := New(newSource(), Config{Rules: row.rules})
		for range 2 {
			_, err := g.Blob(t.Context(), app, oci.Sum(nil), oci.Ask{})
			_, _, terr := g.Tags(t.Context(), app, oci.Page{}, oci.Ask{})
			_, _, rerr := g.Referrers(t.Context(), app, oci.Sum(nil), "", oci.Ask{})
			for _, err := range []error{err, terr, rerr} {
				if errors.Is(err, oci.ErrDenied) != row.closed {
					t.Errorf("%+v: %v, want closed %v", row.rules, err, row.closed)
				}
			}
		}
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m memory[int]
	kept := memoryKey{1, app, oci.Sum([]byte("kept"))}
	m.put(kept, 7)
	for i := range 5 * maxYoung {
		m.put(memoryKey{1, app, oci.Sum(fmt.Append(nil, i))}, i)
		if i%1000 == 0 {
			if v, ok := m.get(kept); !ok || v != 7 {
				t.Fatalf("what is asked for was forgotten after %d others", i)
			}
		}
	}
	if n := len(m.young) + len(m.old); n > 2*maxYoung {
		t.Errorf("%d are remembered", n)
	}
}

// TestAPullThatBeganIsLetFinish: the tag that led to an index moves on before its
// children were asked for.
func TestAPullThatBeganIsLetFinish(t *testing.T) {
	s := newSource()
	amd, windows := s.push("", "linux/amd64", "", 10), s.push("", "windows/amd64", "", 10)
	stray := s.push("", "linux/arm64", "", 10)
	index := s.pushManifest("1.2", "application/vnd.oci.image.index.v1+json", fmt.Sprintf(
		`{"manifests":[{"digest":%q,"platform":{"os":"linux","architecture":"amd64"}},{"digest":%q,"platform":{"os":"windows","architecture":"amd64"}}]}`, amd, windows))
	g := New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*:[0-9]*", Platforms: []string{"linux/*"}}, {Name: "rule 1", Match: "*", Deny: true}}})
	if err := resolve(g, "1.2"); err != nil {
		t.Fatal(err)
	}
	s.tags["1.2"] = stray
	ask := func(d oci.Digest) error {
		_, _, err := g.Manifest(t.Context(), app, d, oci.Ask{})
		return err
	}
	if err := errors.Join(ask(index), ask(amd)); err != nil {
		t.Error(err)
	}
	if err := ask(windows); err == nil || !strings.Contains(err.Error(), "rule 0") {
		t.Errorf("the platform that is not allowed: %v", err)
	}
	if err := ask(stray); err == nil || !strings.Contains(err.Error(), "rule 1") {
		t.Errorf("what nothing has led to yet: %v", err)
	}
}

// TestADryRunRefusesNothing, not even what it cannot judge.
func TestADryRunRefusesNothing(t *testing.T) {
	s := newSource()
	d := s.push("1", "linux/amd64", "", 10)
	s.fail = oci.ErrTooManyRequests
	told := 0
	g := New(s, Config{Rules: []Rule{{Name: "rule 0", Match: "*", MaxSize: 1}}, DryRun: true, Observe: func(r Refusal) {
		told++
		if !r.DryRun || r.Repository != app || r.Reason == "" {
			t.Errorf("told of %+v", r)
		}
	}})
	if err := resolve(g, "1"); err != nil || told != 0 {
		t.Errorf("what cannot be judged: %v, told %d times", err, told)
	}
	s.fail = nil
	if err := resolve(g, "1"); err != nil || told != 1 {
		t.Errorf("what is too large: %v, told %d times", err, told)
	}
	if m, _, err := g.Manifest(t.Context(), app, d, oci.Ask{}); err != nil || m.Digest != d {
		t.Errorf("its manifest: %v", err)
	}
}

// BenchmarkGuard is what a policy costs a client that asks for what is held.
func BenchmarkGuard(b *testing.B) {
	s := newSource()
	d := s.push("1", "linux/amd64", "", 10)
	g := New(s, Config{Rules: []Rule{{Match: "ghcr.io/*", Deny: true}, {Match: "*:latest", Deny: true}, {Match: "docker.io/*", Platforms: []string{"linux/*"}}}})
	for name, ask := range map[string]func() error{
		"tag": func() error { s.asked = s.asked[:0]; return resolve(g, "1") },
		"manifest": func() error {
			s.asked = s.asked[:0]
			_, _, err := g.Manifest(b.Context(), app, d, oci.Ask{})
			return err
		},
		"blob": func() error { s.asked = s.asked[:0]; _, err := g.Blob(b.Context(), app, d, oci.Ask{}); return err },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := ask(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
