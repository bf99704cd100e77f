package main

import (
	"cmp"
	"net/http"
	"time"

	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/proxy"
	"entrepot/store"
	"entrepot/upstream"
)

// What the ledger is told, and how it is kept.

// served tells the ledger of an answer to a client. It is on the path of every
// hit.
func served(l *ledger.Ledger, r *proxy.Record) {
	if r.Repository.Host == "" {
		return
	}
	var fetched, saved int64
	if r.Status < http.StatusBadRequest { // else the bytes tell of a failure
		fetched = fetchedFor(r)
		saved = r.Bytes - fetched
	}
	answer := ledger.Fetched
	switch {
	case r.Status == http.StatusForbidden:
		answer = ledger.Denied
	case r.Status == http.StatusTooManyRequests:
		answer = ledger.Limited
	case isFailure(r):
		answer = ledger.Failed
	case r.Outcome.Cache == "" || r.Status >= http.StatusBadRequest:
		return
	case r.Outcome.Cache == oci.Stale:
		answer = ledger.Stale
	case fetched == 0 && (saved > 0 || !isFetched(r)):
		answer = ledger.Held
	}
	l.Served(r.Repository.Host, r.Repository.Path, cmp.Or(r.User, r.Client), answer, fetched, saved)
}

// fetchedFor is how many of an answer's bytes came from upstream for it: of a blob,
// those that nobody else was served before, whoever had them fetched.
func fetchedFor(r *proxy.Record) int64 {
	switch {
	case r.Outcome.Debt != nil:
		return r.Outcome.Debt.Pay(r.Bytes)
	case isFetched(r):
		return r.Bytes
	}
	return 0
}

// isFetched reports that upstream was asked for what is served.
func isFetched(r *proxy.Record) bool {
	return r.Outcome.Cache == oci.Miss || r.Outcome.Cache == oci.Bypass
}

// isFailure reports whether a client did not get what there is: for trouble, of an
// upstream's or of ours, or since it was refused. That there is no such thing is an
// answer, and that a client is to say who it is no failure.
func isFailure(r *proxy.Record) bool {
	return r.Status >= http.StatusInternalServerError || r.Status == http.StatusTooManyRequests || r.Status == http.StatusForbidden || wasCut(r)
}

// spentBy tells the ledger of a request to an upstream. A 401 only leads to the
// request that counts. A GET that is redirected was answered, whatever comes of
// that; of HEADs the last one tells.
func spentBy(l *ledger.Ledger, c *upstream.Call) {
	s := ledger.Sum{Calls: 1}
	if c.Kind == upstream.ManifestKind {
		switch {
		case c.Method == http.MethodGet && !c.Redirected && (c.Status/100 == 2 || c.Status/100 == 3):
			s.Pulls = 1
		case c.Method == http.MethodHead && c.Status != 0 && c.Status != http.StatusUnauthorized && c.Status/100 != 3:
			s.Heads = 1
		}
	}
	l.Spent(partyOf(c), s)
}

func partyOf(c *upstream.Call) ledger.Party {
	return ledger.Party{Upstream: c.Upstream, Account: c.Account, Repository: c.Repository, Client: c.Client}
}

// settleEvery is how often the ledger is brought up to date.
const settleEvery = 10 * time.Second

// keepLedger takes over what the last process left, and keeps l until stop is
// called, which must come before the disk is closed.
func keepLedger(l *ledger.Ledger, disk *store.Disk, watcher *observer) (stop func()) {
	saved := keep(disk, watcher, advice{
		name: "ledger", most: ledger.MaxState, load: l.Load, save: l.Save,
		lost: "what earlier runs spent is forgotten: their ledger cannot be read", unkept: "the ledger could not be kept",
	})
	settled := repeat(settleEvery, l.Settle)
	return func() {
		settled()
		saved()
	}
}
