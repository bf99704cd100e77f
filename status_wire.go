package main

import (
	own "runtime/metrics"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
)

// statusJSON is what goes on in a running server.
type statusJSON struct {
	Version  string        `json:"version"`
	Data     string        `json:"data"` // the data directory, absolute
	Since    time.Time     `json:"since"`
	Now      time.Time     `json:"now"`
	Offline  []string      `json:"offline,omitempty"` // upstreams that are set not to be asked
	Breakers []breakerJSON `json:"breakers"`
	Quotas   []quotaJSON   `json:"quotas"`
	Spent    spentJSON     `json:"spent"`
	Fills    []fillJSON    `json:"fills"` // those that run, the oldest first
	Disk     diskJSON      `json:"disk"`
	Memory   memoryJSON    `json:"memory"`

	Warm map[string]int `json:"warm,omitempty"` // images of the list, by how they are; warmlist tells of each
}

// breakerJSON is how a host of an upstream answers.
type breakerJSON struct {
	Upstream string    `json:"upstream"`
	Host     string    `json:"host"`
	State    string    `json:"state"`              // closed: it is asked; open, probing: it is not
	Since    time.Time `json:"since,omitzero"`     // when that began
	Failures int       `json:"failures,omitempty"` // in a row
	Refused  int       `json:"refused,omitempty"`  // requests that were not sent since then
	Error    string    `json:"error,omitempty"`    // the last failure
	Next     time.Time `json:"next,omitzero"`      // of the next probe
	Paused   time.Time `json:"paused,omitzero"`    // until when it asked us to wait, with some of its requests or all
}

// quotaJSON is what an upstream last said of how much an account may pull.
type quotaJSON struct {
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
}

// spentJSON is what the ledger has of some hours.
type spentJSON struct {
	Hours        int        `json:"hours"` // the running one included
	Since        time.Time  `json:"since"` // the first of which anything is known
	Total        ledger.Sum `json:"total"`
	Upstreams    listJSON   `json:"upstreams"`
	Accounts     listJSON   `json:"accounts"`
	Repositories listJSON   `json:"repositories"`
	Clients      listJSON   `json:"clients"`
}

// listJSON has the heaviest spenders, and the sum of all others.
type listJSON struct {
	Lines  []lineJSON `json:"lines"`
	Others ledger.Sum `json:"others"`
}

type lineJSON struct {
	Upstream string `json:"upstream"`
	Name     string `json:"name,omitempty"` // empty: nobody's account, nobody in particular
	ledger.Sum
}

// fillJSON is a blob on its way in.
type fillJSON struct {
	Repository     string     `json:"repository"`
	Digest         oci.Digest `json:"digest"`
	Client         string     `json:"client,omitempty"` // who pays for it
	Began          time.Time  `json:"began"`
	Size           int64      `json:"size"` // -1 while unknown
	Landed         int64      `json:"landed"`
	BytesPerSecond int64      `json:"bytesPerSecond"` // since it began
	Readers        int        `json:"readers"`
	Streams        int        `json:"streams"`
}

type diskJSON struct {
	Held   int64 `json:"held"`
	Budget int64 `json:"budget"` // 0 for none
	Free   int64 `json:"free"`
}

type memoryJSON struct {
	Held    int64 `json:"held"` // in the memory tier
	Budget  int64 `json:"budget"`
	Process int64 `json:"process"` // of which the tier is a part
}

func newStatusJSON(api *adminAPI, hours, top int) statusJSON {
	l, now, disk := api.live, time.Now(), api.disk.Stats()
	s := statusJSON{
		Version: api.about.Version, Data: api.about.Data, Since: l.began.Round(0), Now: now.Round(0), Offline: api.cfg.offline(),
		Breakers: []breakerJSON{}, Quotas: []quotaJSON{}, Fills: []fillJSON{},
		Spent:  newSpentJSON(l.ledger.Report(hours, top), hours),
		Disk:   diskJSON{disk.Held, api.budget, disk.Free},
		Memory: memoryJSON{disk.Memory, api.memory, processMemory()},
		Warm:   l.warming.counts(),
	}
	for _, b := range l.upstreams.Breakers() {
		one := breakerJSON{b.Upstream, b.Host, string(b.State), b.Since, b.Failures, b.Refused, "", b.Next, b.Paused}
		if b.Err != nil {
			one.Error = oci.Causes(b.Err)
		}
		s.Breakers = append(s.Breakers, one)
	}
	for _, q := range l.upstreams.Quotas() {
		s.Quotas = append(s.Quotas, quotaJSON{
			q.Upstream, q.Host, q.Account, q.Limit, q.Left, q.Reserve, int64(q.Window / time.Second), q.Resets, q.Exact, q.Paused, q.Seen,
		})
	}
	for _, p := range l.cache.Fills() {
		s.Fills = append(s.Fills, newFillJSON(p, now))
	}
	return s
}

func newSpentJSON(r ledger.Report, hours int) spentJSON {
	list := func(l ledger.List) listJSON {
		out := listJSON{[]lineJSON{}, l.Others}
		for _, line := range l.Lines {
			out.Lines = append(out.Lines, lineJSON{line.Upstream, line.Name, line.Sum})
		}
		return out
	}
	return spentJSON{hours, r.Since, r.Total, list(r.Upstreams), list(r.Accounts), list(r.Repositories), list(r.Clients)}
}

func newFillJSON(p cache.Progress, now time.Time) fillJSON {
	f := fillJSON{p.Repository.String(), p.Digest, p.Client, p.Began.Round(0), p.Size, p.Landed, 0, p.Readers, p.Streams}
	if took := now.Sub(p.Began).Seconds(); took > 0 {
		f.BytesPerSecond = int64(float64(p.Landed-p.Had) / took)
	}
	return f
}

// processMemory is what this process has of the system's memory, as far as Go
// knows.
func processMemory() int64 {
	s := []own.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	own.Read(s)
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}
