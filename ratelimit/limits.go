package ratelimit

import "time"

// Limits bound what we ask of one upstream. A zero field takes its value from
// Defaults.
type Limits struct {
	Rate      float64       // requests per second to the registry and to its token service, each; negative: no bound
	Burst     int           // requests that may go out at once before Rate holds
	Requests  int           // answers awaited at once, per host
	Transfers int           // blob bodies at once, per host
	Wait      time.Duration // how long a request may queue before it is refused
	Reserve   float64       // share of a quota that is left to who waits for what is not held; negative: none
}

// base holds for a registry that nothing is known of.
var base = Limits{Rate: 100, Burst: 200, Requests: 32, Transfers: 64, Wait: 10 * time.Second, Reserve: 0.1}

type row struct{ anonymous, signedIn Limits }

// table holds what is known of public registries. Only the rates of
// public.ecr.aws are documented (public-service-quotas.html: 1 and 10 a second);
// Quay's page speaks of a few requests a second with bursts; Docker Hub's abuse
// limit acts at thousands a minute per address. The others published nothing:
// far below where 429s were reported. A burst covers the requests of one pull.
var table = map[string]row{
	"docker.io":         same(Limits{Rate: 20, Burst: 60}),
	"mcr.microsoft.com": same(Limits{Rate: 20, Burst: 60}),
	"ghcr.io":           same(Limits{Rate: 20, Burst: 60}),
	"lscr.io":           same(Limits{Rate: 20, Burst: 60}),
	"quay.io":           same(Limits{Rate: 5, Burst: 20}),
	"registry.k8s.io":   same(Limits{Rate: 20, Burst: 60}),
	"gcr.io":            same(Limits{Rate: 20, Burst: 60}),
	"public.ecr.aws":    {anonymous: Limits{Rate: 1, Burst: 5}, signedIn: Limits{Rate: 10, Burst: 20}},
}

func same(l Limits) row { return row{l, l} }

// Defaults are the limits of an upstream by its name, whole.
func Defaults(upstream string, signedIn bool) Limits {
	r := table[upstream]
	if signedIn {
		return r.signedIn.or(base)
	}
	return r.anonymous.or(base)
}

// For is l with what it leaves open filled in from Defaults.
func (l Limits) For(upstream string, signedIn bool) Limits {
	return l.or(Defaults(upstream, signedIn))
}

// or fills l's zero fields from d. Rate and Burst belong together: a rate of
// one's own does not inherit another's burst.
func (l Limits) or(d Limits) Limits {
	if l.Rate == 0 {
		l.Rate = d.Rate
		if l.Burst <= 0 {
			l.Burst = d.Burst
		}
	}
	if l.Burst <= 0 {
		l.Burst = max(1, int(min(2*l.Rate, 1e6)))
	}
	if l.Requests <= 0 {
		l.Requests = d.Requests
	}
	if l.Transfers <= 0 {
		l.Transfers = d.Transfers
	}
	if l.Wait <= 0 {
		l.Wait = d.Wait
	}
	if l.Reserve == 0 {
		l.Reserve = d.Reserve
	}
	l.Reserve = min(l.Reserve, 1)
	return l
}

// begunWait is how long a question waits that has begun: a little longer than a new one,
// and for the next two turns in any case if they are near, so that what was spent on it is
// not lost.
func (l Limits) begunWait() time.Duration {
	longer := l.Wait / 4
	if l.Rate > 0 {
		longer = max(longer, min(prompt, time.Duration(2*float64(time.Second)/l.Rate)))
	}
	return l.Wait + longer
}
