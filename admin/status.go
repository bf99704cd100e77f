package admin

import (
	"context"
	own "runtime/metrics"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/upstream"
)

// Status is what goes on in a running server.
type Status struct {
	Version  string    `json:"version"`
	Data     string    `json:"data"` // the data directory, absolute
	Since    time.Time `json:"since"`
	Now      time.Time `json:"now"`
	Offline  []string  `json:"offline,omitempty"` // upstreams that are set not to be asked
	Unread   []Unread  `json:"unread,omitempty"`  // files that were changed and cannot be read: what was read before stays
	Breakers []Breaker `json:"breakers"`
	Logins   []Login   `json:"logins"`            // that are refused
	Waiting  []Waiting `json:"waiting,omitempty"` // upstreams that have not answered for a second or more
	Quotas   []Quota   `json:"quotas"`
	Spent    Spent     `json:"spent"`
	Fills    []Fill    `json:"fills"` // those that run, the oldest first
	Disk     Disk      `json:"disk"`
	Memory   Memory    `json:"memory"`

	Warm      map[string]int `json:"warm,omitempty"`      // images of the list, by how they are; warmlist tells of each
	WarmError string         `json:"warmError,omitempty"` // why the list, or some of its lines, cannot be read
}

// Unread is what cannot be read from its files, though it was before.
type Unread struct {
	What     string    `json:"what"` // such as users, rights or TLS certificate
	Error    string    `json:"error"`
	Settings []string  `json:"settings,omitempty"` // that name the files, NAME=PATH
	Since    time.Time `json:"since"`
}

// Breaker is how a host of an upstream answers.
type Breaker struct {
	Upstream string    `json:"upstream"`
	Host     string    `json:"host"`
	Part     string    `json:"part,omitempty"`       // empty: all of it; else what of it is not asked by itself
	Repo     string    `json:"repository,omitempty"` // that the part is asked about: many have their tokens at one path
	State    string    `json:"state"`                // closed: it is asked; open, probing: it is not
	Since    time.Time `json:"since,omitzero"`       // when that began
	Failures int       `json:"failures,omitempty"`   // in a row
	Failed   time.Time `json:"failed,omitzero"`      // when the last of them was
	Refused  int       `json:"refused,omitempty"`    // requests that were not sent since then
	Error    string    `json:"error,omitempty"`      // the last failure
	Next     time.Time `json:"next,omitzero"`        // of the next probe
	Paused   time.Time `json:"paused,omitzero"`      // until when it asked us to wait, with some of its requests or all
	Remedy   string    `json:"remedy,omitempty"`     // against that, where it is asked without a login
	Behind   time.Time `json:"behind,omitzero"`      // until when the upstream's other addresses are asked before it
	Why      string    `json:"why,omitempty"`        // it stands behind them
}

// Waiting is how much an upstream was asked for clients, of manifests and lists, that it
// has not answered for a second or more; a turn that is waited for included.
type Waiting struct {
	Upstream  string    `json:"upstream"`
	Questions int       `json:"questions"`
	Since     time.Time `json:"since"` // of the oldest
}

// Login is an account that an upstream refuses: what it is for is asked for
// anonymously.
type Login struct {
	Upstream string    `json:"upstream"`
	Host     string    `json:"host"` // that refuses it
	Account  string    `json:"account"`
	Setting  string    `json:"setting"`       // where it is set
	Since    time.Time `json:"since"`         // when it was first refused
	Next     time.Time `json:"next,omitzero"` // until then it is not tried again
}

// Quota is what an upstream last said of how much an account may pull.
type Quota struct {
	Upstream      string    `json:"upstream"`
	Host          string    `json:"host"`
	Account       string    `json:"account"` // empty: whoever asks from our address
	Limit         int       `json:"limit"`   // -1 if it was not said
	Left          int       `json:"left"`    // -1 if it was not said
	Reserve       int       `json:"reserve"` // the last of them, kept for those who wait
	WindowSeconds int64     `json:"windowSeconds,omitempty"`
	Resets        time.Time `json:"resets,omitzero"`
	Exact         bool      `json:"exact"`           // resets is upstream's word; else it is then at the latest
	Paused        time.Time `json:"paused,omitzero"` // until when none is asked for
	Seen          time.Time `json:"seen"`
	Remedy        string    `json:"remedy,omitempty"` // where it is spent, and asked for without a login
}

// Spent is what the ledger has of some hours.
type Spent struct {
	Hours        int        `json:"hours"` // the running one included
	Since        time.Time  `json:"since"` // the first of which anything is known
	Total        ledger.Sum `json:"total"`
	Upstreams    Spenders   `json:"upstreams"`
	Accounts     Spenders   `json:"accounts"`
	Repositories Spenders   `json:"repositories"`
	Clients      Spenders   `json:"clients"`
}

// Spenders has the heaviest spenders, and the sum of all others.
type Spenders struct {
	Lines  []Spender  `json:"lines"`
	Others ledger.Sum `json:"others"`
}

// Spender is somebody, or something, that requests were sent for.
type Spender struct {
	Upstream string `json:"upstream"`
	Name     string `json:"name,omitempty"` // empty: nobody's account, nobody in particular
	ledger.Sum
}

// Fill is a blob on its way in.
type Fill struct {
	Repository     string     `json:"repository"`
	Digest         oci.Digest `json:"digest"`
	Client         string     `json:"client,omitempty"` // who pays for it
	From           string     `json:"from,omitempty"`   // the address of the upstream that answered last
	Began          time.Time  `json:"began"`
	Came           time.Time  `json:"came,omitzero"` // when bytes came last
	Size           int64      `json:"size"`          // -1 while unknown
	Landed         int64      `json:"landed"`
	BytesPerSecond int64      `json:"bytesPerSecond"` // since it began
	Readers        int        `json:"readers"`
	Streams        int        `json:"streams"`
	Trouble        string     `json:"trouble,omitempty"` // stalled, slow; empty also while nothing is asked of the upstream
}

// What is said of a fill that hardly comes.
const (
	Stalled = "stalled" // nothing has come for stalledAfter
	Slow    = "slow"    // since it began it came, on average, at less than what an upstream is left for
)

// stalledAfter is how long nothing may come of what is asked for.
const stalledAfter = 5 * time.Second

// Disk is what is held on it.
type Disk struct {
	Held   int64 `json:"held"`
	Budget int64 `json:"budget"` // 0 for none
	Free   int64 `json:"free"`
}

// Memory is what this process takes of it.
type Memory struct {
	Held    int64 `json:"held"` // in the memory tier
	Budget  int64 `json:"budget"`
	Process int64 `json:"process"` // of which the tier is a part
}

// MaxTop is how many clients and repositories are told.
const MaxTop = 100

func (x *exchange) status() error {
	hours, err := x.number("hours", 1, ledger.Hours, 6)
	if err != nil {
		return err
	}
	top, err := x.number("top", 0, MaxTop, 10)
	if err != nil {
		return err
	}
	return x.result(newStatus(x.r.Context(), x.api, hours, top))
}

func newStatus(ctx context.Context, api *API, hours, top int) Status {
	l, now, disk := api.cfg.Live, time.Now(), api.cfg.Disk.Stats()
	s := Status{
		Version: api.about.Version, Data: api.about.Data, Since: l.Since.Round(0), Now: now.Round(0), Offline: l.Offline, Unread: l.Unread(),
		Breakers: l.breakers(ctx), Logins: l.logins(ctx), Quotas: l.quotas(ctx), Fills: []Fill{},
		Spent:  newSpent(l.Ledger.Report(hours, top), hours),
		Disk:   Disk{disk.Held, api.cfg.Budget, disk.Free},
		Memory: Memory{disk.Memory, api.cfg.Memory, processMemory()},
		Warm:   warmCounts(l.List), WarmError: warmError(l.List),
	}
	for _, w := range l.Upstreams.Waiting() {
		s.Waiting = append(s.Waiting, Waiting{w.Upstream, w.Questions, w.Since.Round(0)})
	}
	for _, p := range l.Cache.Fills() {
		s.Fills = append(s.Fills, newFill(p, now))
	}
	return s
}

// breakers tells how hosts fare.
func (l *Live) breakers(ctx context.Context) []Breaker {
	all, now := []Breaker{}, time.Now()
	for _, b := range l.Upstreams.Breakers() {
		one := Breaker{b.Upstream, b.Host, b.Part, b.Repo, string(b.State), b.Since, b.Failures, b.Failed, b.Refused, "", b.Next, b.Paused, "", b.Behind.Round(0), string(b.Why)}
		if b.Err != nil {
			one.Error = oci.Causes(b.Err)
		}
		if b.Paused.After(now) && b.SignsIn {
			one.Remedy = l.remedy(ctx, b.Upstream, b.Host)
		}
		all = append(all, one)
	}
	return all
}

// logins tells which accounts are refused.
func (l *Live) logins(ctx context.Context) []Login {
	all := []Login{}
	for _, r := range l.Upstreams.RefusedLogins(ctx) {
		all = append(all, l.newLogin(r))
	}
	return all
}

func (l *Live) newLogin(r upstream.RefusedLogin) Login {
	return Login{r.Upstream, r.Host, r.Account, l.SettingOf(r.Upstream, r.Account), r.Since.Round(0), r.Next.Round(0)}
}

// quotas tells what is left to pull.
func (l *Live) quotas(ctx context.Context) []Quota {
	all, now := []Quota{}, time.Now()
	for _, q := range l.Upstreams.Quotas() {
		one := Quota{
			q.Upstream, q.Host, q.Account, q.Limit, q.Left, q.Reserve, int64(q.Window / time.Second), q.Resets, q.Exact, q.Paused, q.Seen, "",
		}
		if q.Account == "" && (q.Left >= 0 && q.Left <= q.Reserve || q.Paused.After(now)) {
			one.Remedy = l.remedy(ctx, q.Upstream, q.Host)
		}
		all = append(all, one)
	}
	return all
}

// remedy is what there is against the limits of an address, beside patience.
func (l *Live) remedy(ctx context.Context, name, host string) string {
	if account, _ := l.Upstreams.SignedIn(ctx, oci.Repository{Host: name}); account != "" {
		return ""
	}
	return l.SignIn(name, host)
}

func newSpent(r ledger.Report, hours int) Spent {
	list := func(l ledger.List) Spenders {
		out := Spenders{[]Spender{}, l.Others}
		for _, line := range l.Lines {
			out.Lines = append(out.Lines, Spender{line.Upstream, line.Name, line.Sum})
		}
		return out
	}
	return Spent{hours, r.Since, r.Total, list(r.Upstreams), list(r.Accounts), list(r.Repositories), list(r.Clients)}
}

func newFill(p cache.Progress, now time.Time) Fill {
	f := Fill{p.Repository.String(), p.Digest, p.Client, p.From, p.Began.Round(0), p.Came.Round(0), p.Size, p.Landed, 0, p.Readers, p.Streams, ""}
	if took := now.Sub(p.Began).Seconds(); took > 0 {
		f.BytesPerSecond = int64(float64(p.Landed-p.Had) / took)
	}
	f.Trouble = f.trouble(now)
	return f
}

// trouble is how a fill hardly comes. Where nothing is asked of the upstream, for a
// client that reads slowly, say, or all has landed and is hashed, none is told.
func (f Fill) trouble(now time.Time) string {
	switch {
	case f.Streams == 0, f.Landed == f.Size:
		return ""
	case now.Sub(f.LastCame()) >= stalledAfter:
		return Stalled
	case f.BytesPerSecond < upstream.LeastRate && now.Sub(f.Began) >= upstream.LeastOver:
		return Slow
	}
	return ""
}

// LastCame is when bytes came last, or when it began.
func (f Fill) LastCame() time.Time {
	if f.Came.IsZero() {
		return f.Began
	}
	return f.Came
}

// processMemory is what this process has of the system's memory, as far as Go
// knows.
func processMemory() int64 {
	s := []own.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	own.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}
