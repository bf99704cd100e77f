package upstream

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"entrepot/oci"
	"entrepot/ratelimit"
)

// told is a Set of one upstream that told accounts of their quotas, and asked one to
// wait.
func told(t *testing.T, accounts ...string) *Set {
	t.Helper()
	c := connectAt(t, "https://registry.test/path", time.Now, func(cfg *Config) { cfg.Accounts = accounts })
	call := ratelimit.Call{Host: "registry.test", Class: ratelimit.Check}
	for _, call.Account = range append(accounts, "") {
		tell(t, c, call, 200, http.Header{"Ratelimit-Limit": {"100;w=21600"}, "Ratelimit-Remaining": {"42"}}, "")
	}
	tell(t, c, ratelimit.Call{Host: "registry.test", Class: ratelimit.Blob}, 429, http.Header{"Retry-After": {"60"}}, "too many")
	return NewSet(c)
}

func tell(t *testing.T, c *Client, call ratelimit.Call, status int, header http.Header, body string) {
	t.Helper()
	p, err := c.primary.limiter.Acquire(t.Context(), call)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	p.Answered(status, header, []byte(body))
}

func mustSave(t *testing.T, s *Set) []byte {
	t.Helper()
	state, changed := s.Save()
	if !changed {
		t.Fatal("there is nothing to save")
	}
	return state
}

// What is kept is for the same address of the same upstream, and of what is kept there
// for the accounts that it is signed in to with still.
func TestWhatIsKeptIsForWhomItWasSaidTo(t *testing.T) {
	const url = "https://registry.test/path"
	for name, row := range map[string]struct {
		name, url string
		accounts  []string
		want      []string
		paused    bool
	}{
		"the same":               {"docker.io", url, []string{"me", "bot"}, []string{"", "bot", "me"}, true},
		"one of two":             {"docker.io", url, []string{"me"}, []string{"", "me"}, false},
		"another login":          {"docker.io", url, []string{"you"}, []string{""}, false},
		"no login":               {"docker.io", url, nil, []string{""}, false},
		"another address":        {"docker.io", "https://other.test/path", []string{"me", "bot"}, nil, false},
		"another path":           {"docker.io", "https://registry.test", []string{"me", "bot"}, nil, false},
		"another upstream there": {"quay.io", url, []string{"me", "bot"}, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			state := mustSave(t, told(t, "me", "bot"))
			c := connectAt(t, row.url, time.Now, func(cfg *Config) { cfg.Name, cfg.Accounts = row.name, row.accounts })
			s := NewSet(c)
			if err := s.Load(state); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, q := range s.Quotas() {
				got = append(got, q.Account)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("quotas (-want +got):\n%s", diff)
			}
			if paused := !c.Breakers()[0].Paused.IsZero(); paused != row.paused {
				t.Errorf("paused: %t, want %t", paused, row.paused)
			}
		})
	}
}

// Two tokens without a name are two accounts that look the same.
func TestTheQuotaOfATokenIsNotKept(t *testing.T) {
	state := mustSave(t, told(t, tokenAccount))
	if bytes.Contains(state, []byte(`"account":"token"`)) {
		t.Errorf("%s", state)
	}
}

func TestStateIsSavedWhenItChanges(t *testing.T) {
	if state, changed := NewSet(connectAt(t, "", time.Now)).Save(); changed {
		t.Errorf("of nothing it saves %s", state)
	}
	s := told(t)
	state := mustSave(t, s)
	if _, changed := s.Save(); changed {
		t.Error("it is saved twice")
	}
	s = told(t)
	if err := s.Load(state); err != nil {
		t.Fatal(err)
	}
	if _, changed := s.Save(); changed {
		t.Error("what was loaded is saved")
	}
	tell(t, s.clients[0], ratelimit.Call{Host: "another.test", Class: ratelimit.Check}, 200, http.Header{"Ratelimit-Remaining": {"41"}}, "")
	if state := mustSave(t, s); !bytes.Contains(state, []byte(`"left":41`)) {
		t.Errorf("%s", state)
	}
}

func TestStatesThatAreNotBelieved(t *testing.T) {
	state := string(mustSave(t, told(t, "me")))
	for name, damaged := range map[string]string{
		"empty":            "",
		"half of it":       state[:len(state)/2],
		"another version":  strings.Replace(state, `"version":1`, `"version":2`, 1),
		"not even a state": "[]",
	} {
		s := NewSet(connectAt(t, "https://registry.test/path", time.Now, func(cfg *Config) { cfg.Accounts = []string{"me"} }))
		if err := s.Load([]byte(damaged)); err == nil {
			t.Errorf("%s: %s is believed", name, damaged)
		}
		if q := s.Quotas(); len(q) > 0 {
			t.Errorf("%s: of it %+v is taken over", name, q)
		}
	}
}

// What is damaged costs nothing but itself, and what is of no upstream any more not even
// a warning.
func TestOneDamagedEntryIsLeftOut(t *testing.T) {
	state := string(mustSave(t, told(t, "me")))
	site := func(upstream, url string) string {
		return `{"upstream":"` + upstream + `","url":"` + url + `","quotas":[{"account":"","limit":-5}]}`
	}
	for name, row := range map[string]struct {
		state string
		warns bool
		want  []string // the quotas that are left
	}{
		"a quota": {strings.Replace(state, `"left":42`, `"left":-42`, 1), true, []string{"me"}},
		"another upstream that is no more": {
			strings.Replace(state, `"sites":[`, `"sites":[`+site("gone.test", "https://gone.test")+`,`, 1), false, []string{"", "me"},
		},
		"another upstream": {
			strings.Replace(state, `"sites":[`, `"sites":[`+site("quay.io", "https://quay.test")+`,`, 1), true, []string{"", "me"},
		},
		"an account that is no more": {
			strings.Replace(state, `"quotas":[`, `"quotas":[{"account":"you","limit":-5},`, 1), false, []string{"", "me"},
		},
		"a pause": {strings.Replace(state, `"pauses":[`, `"pauses":[{"host":""},`, 1), true, []string{"", "me"}},
	} {
		t.Run(name, func(t *testing.T) {
			c := connectAt(t, "https://registry.test/path", time.Now, func(cfg *Config) { cfg.Accounts = []string{"me"} })
			s := NewSet(c, connectAt(t, "https://quay.test", time.Now, func(cfg *Config) { cfg.Name = "quay.io" }))
			if err := s.Load([]byte(row.state)); (err != nil) != row.warns {
				t.Errorf("it says %v", err)
			}
			var got []string
			for _, q := range s.Quotas() {
				got = append(got, q.Account)
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("quotas (-want +got):\n%s", diff)
			}
			if c.Breakers()[0].Paused.IsZero() {
				t.Error("what is not damaged is forgotten")
			}
		})
	}
}

func FuzzLoad(f *testing.F) {
	seen := time.Now().Add(-time.Minute)
	for _, one := range []ratelimit.State{
		{Quotas: []ratelimit.KeptQuota{{Limit: 100, Left: 5, Window: 21600, Began: seen, Seen: seen, Resets: seen.Add(6 * time.Hour), Heads: true, Source: "192.0.2.1"}}},
		{Pauses: []ratelimit.KeptPause{{Host: "registry.test", Until: seen.Add(time.Hour)}, {Host: "registry.test", Class: "check", Until: seen.Add(time.Hour), Backoff: 60}}},
	} {
		state, err := json.Marshal(setState{stateVersion, []siteState{{Upstream: "docker.io", URL: "https://registry.test", State: one}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(state)
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		c, err := New(Config{Name: "docker.io", URL: "https://registry.test"})
		if err != nil {
			t.Fatal(err)
		}
		s := NewSet(c)
		defer s.Close()
		_ = s.Load(state) // what is not damaged is believed, whatever it says
		for _, q := range s.Quotas() {
			if q.Account != "" || q.Limit < -1 || q.Left < -1 || q.Window < 0 {
				t.Errorf("it believes %+v", q)
			}
			if q.Exact && time.Until(q.Resets) > 7*24*time.Hour {
				t.Errorf("it waits until %v", q.Resets)
			}
		}
		if wait := c.Withheld(t.Context(), alpine); wait < 0 {
			t.Errorf("a wait of %v", wait)
		}
		if paused := c.Breakers()[0].Paused; time.Until(paused) > oci.MaxRetryAfter {
			t.Errorf("a pause until %v", paused)
		}
		saved, changed := s.Save()
		if again := NewSet(c); changed && again.Load(saved) != nil {
			t.Errorf("what was saved is not believed: %s", saved)
		}
	})
}
