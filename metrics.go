package main

import (
	"context"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"entrepot/cache"
	"entrepot/ledger"
	"entrepot/oci"
	"entrepot/policy"
	"entrepot/proxy"
	"entrepot/ratelimit"
	"entrepot/store"
	"entrepot/upstream"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"
)

// metrics are what Prometheus can scrape. Every label has a closed set of
// values: upstreams are configured, and nothing of a stranger's text becomes
// one.
type metrics struct {
	registry  *prometheus.Registry
	upstreams []string

	requests  *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	durations *prometheus.HistogramVec
	cut       *prometheus.CounterVec

	upstreamRequests  *prometheus.CounterVec
	upstreamDurations *prometheus.HistogramVec
	upstreamBytes     *prometheus.CounterVec

	diskTrouble  *prometheus.CounterVec
	refused      *prometheus.CounterVec
	crowded      *prometheus.CounterVec
	loginsFailed prometheus.Counter
	tracesLost   prometheus.Counter

	// tables hold the resolved series by upstream, since looking them up by
	// label costs a hit ten times as much.
	tables map[string]*seriesTable
}

// none is the label's value where a request has no such thing.
const none = "none"

// seriesTable has one series per kind, outcome and class of status, each made
// when it is first needed.
type seriesTable [len(kindLabels)][len(outcomeLabels)][len(statusLabels)]atomic.Pointer[series]

type series struct {
	requests prometheus.Counter
	bytes    prometheus.Counter
	duration prometheus.Observer
}

var (
	kindLabels    = [...]string{none, oci.Ping.String(), oci.ManifestKind.String(), oci.BlobKind.String(), oci.TagsKind.String(), oci.ReferrersKind.String(), oci.CatalogKind.String(), oci.UploadKind.String(), tokenRoute, healthzRoute, readyzRoute}
	outcomeLabels = [...]string{none, string(oci.Hit), string(oci.Miss), string(oci.Stale), string(oci.Joined), string(oci.Bypass)}
	statusLabels  = [...]string{none, "1xx", "2xx", "3xx", "4xx", "5xx"}
)

// The buckets reach from a hit in memory to a large layer over a slow line.
var (
	requestBuckets  = []float64{.0005, .001, .0025, .01, .05, .25, 1, 5, 15, 60, 300}
	upstreamBuckets = []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 15, 30}
)

func newMetrics(b build, upstreams []string) *metrics {
	m := &metrics{registry: prometheus.NewRegistry(), upstreams: upstreams, tables: map[string]*seriesTable{none: new(seriesTable)}}
	for _, name := range upstreams {
		m.tables[name] = new(seriesTable)
	}
	m.requests = m.counter("requests_total", "Requests by clients, by what became of them.", "upstream", "kind", "outcome", "status")
	m.bytes = m.counter("response_bytes_total", "Bytes of bodies sent to clients.", "upstream", "kind", "outcome", "status")
	m.durations = m.histogram("request_duration_seconds", "Time from a request's header to the end of its answer.", requestBuckets, "kind", "outcome")
	m.cut = m.counter("responses_cut_total", "Answers whose connection was cut after their headers, though the client was there.", "upstream", "kind")
	m.upstreamRequests = m.counter("upstream_requests_total", "Requests to upstreams, to their token services and where they redirect.", "upstream", "kind", "status")
	m.upstreamDurations = m.histogram("upstream_request_duration_seconds", "Time until an upstream's answer began.", upstreamBuckets, "upstream", "kind")
	m.upstreamBytes = m.counter("upstream_received_bytes_total", "Bytes of manifests and blobs from upstreams.", "upstream", "kind")
	m.diskTrouble = m.counter("disk_trouble_total", "Content that could not be kept, since there was no_room or it was too_large, and failures of the disk.", "reason")
	for _, reason := range []string{"no_room", "too_large", "disk"} {
		m.diskTrouble.WithLabelValues(reason)
	}
	m.refused = m.counter("policy_refused_total", "Requests that a rule of the policy refused, or would have refused in a dry run.", "rule", "mode")
	m.crowded = m.counter("clients_turned_away_total", "Clients that a listener with too many connections has turned away: told 503, or closed without a word.", "listener", "what")
	for _, listener := range listenerNames {
		for _, what := range []string{turnedTold, turnedClosed} {
			m.crowded.WithLabelValues(listener, what) // from 0 on, so that the first is an increase
		}
	}
	m.loginsFailed = m.plainCounter("logins_failed_total", "Passwords and tokens of clients that were tried and not believed; what is told 429, or was refused a moment ago, is not tried.")
	m.tracesLost = m.plainCounter("trace_exports_failed_total", "Batches of spans that the collector of traces did not take, or not all of.")
	info := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "Always 1; the labels tell the build."}, []string{"version", "revision", "goversion"})
	info.WithLabelValues(b.Version, b.Revision, b.Go).Set(1)
	m.registry.MustRegister(info, goMetrics(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

const namespace = "entrepot"

func (m *metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(v)
	return v
}

func (m *metrics) plainCounter(name, help string) prometheus.Counter {
	c := prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help})
	m.registry.MustRegister(c)
	return c
}

func (m *metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(v)
	return v
}

// handler serves what is known at the time of the scrape.
func (m *metrics) handler(logger zerolog.Logger) http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{ErrorLog: promLog{logger}, MaxRequestsInFlight: 4})
}

type promLog struct{ log zerolog.Logger }

func (l promLog) Println(v ...any) { l.log.Error().Msgf("metrics: %v", v) }

// request counts one request of a client.
func (m *metrics) request(r *proxy.Record) {
	host := r.Repository.Host
	table := m.tables[host]
	if table == nil {
		host, table = none, m.tables[none]
	}
	kind, outcome := indexOf(kindLabels[:], r.Kind), indexOf(outcomeLabels[:], string(r.Outcome.Cache))
	status := min(max(r.Status/100, 0), len(statusLabels)-1)
	slot := &table[kind][outcome][status]
	s := slot.Load()
	if s == nil { // two requests may both get here; the registry gives them the same counters
		labels := []string{host, kindLabels[kind], outcomeLabels[outcome], statusLabels[status]}
		s = &series{
			requests: m.requests.WithLabelValues(labels...),
			bytes:    m.bytes.WithLabelValues(labels...),
			duration: m.durations.WithLabelValues(kindLabels[kind], outcomeLabels[outcome]),
		}
		slot.Store(s)
	}
	s.requests.Inc()
	s.bytes.Add(float64(r.Bytes))
	s.duration.Observe(r.Duration.Seconds())
	if wasCut(r) {
		m.cut.WithLabelValues(host, kindLabels[kind]).Inc()
	}
}

// indexOf is v's place in labels; 0, which means none, if it has no place.
func indexOf(labels []string, v string) int { return max(0, slices.Index(labels, v)) }

// call counts one request to an upstream.
func (m *metrics) call(c upstream.Call) {
	m.upstreamRequests.WithLabelValues(c.Upstream, string(c.Kind), statusLabel(c.Status)).Inc()
	m.upstreamDurations.WithLabelValues(c.Upstream, string(c.Kind)).Observe(c.Duration.Seconds())
}

// received counts what crossed the line from an upstream.
func (m *metrics) received(c upstream.Call, n int64) {
	m.upstreamBytes.WithLabelValues(c.Upstream, string(c.Kind)).Add(float64(n))
}

// refusal counts what the policy refuses, or would.
func (m *metrics) refusal(r policy.Refusal) {
	mode := "enforced"
	if r.DryRun {
		mode = "dry_run"
	}
	m.refused.WithLabelValues(strconv.Itoa(r.Rule), mode).Inc()
}

// notKept counts an error of the data directory; others are counted elsewhere.
func (m *metrics) notKept(err error) {
	switch {
	case errors.Is(err, store.ErrTooLarge):
		m.diskTrouble.WithLabelValues("too_large").Inc()
	case errors.Is(err, store.ErrNoRoom):
		m.diskTrouble.WithLabelValues("no_room").Inc()
	case errors.Is(err, store.ErrDisk):
		m.diskTrouble.WithLabelValues("disk").Inc()
	}
}

// statusLabel bounds what an upstream's status can add to our memory.
func statusLabel(status int) string {
	switch {
	case status == 0:
		return "error"
	case http.StatusText(status) != "":
		return strconv.Itoa(status)
	}
	return "other"
}

// watch adds what is read when it is scraped.
func (m *metrics) watch(disk func() store.Stats, cacheStats func() cache.Stats, quotas func() []upstream.Quota, capacity Size) {
	m.gauge("disk_held_bytes", "What the data directory holds, as far as it has been counted.", func() float64 { return float64(disk().Held) })
	m.gauge("disk_cap_bytes", "What the data directory may hold at most; 0 is no cap.", func() float64 { return float64(capacity) })
	m.gauge("disk_free_bytes", "What is free on the disk of the data directory.", func() float64 { return float64(disk().Free) })
	m.total("evicted_total", "Blobs and unfinished fills that were evicted.", func() float64 { return float64(disk().Evicted) })
	m.total("evicted_bytes_total", "What eviction freed.", func() float64 { return float64(disk().EvictedBytes) })
	m.total("damaged_total", "Held files that were dropped since they were not what they should be.", func() float64 { return float64(disk().Damaged) })
	m.gauge("memory_held_bytes", "What the memory tier holds.", func() float64 { return float64(disk().Memory) })
	m.gauge("fills_running", "Blobs on their way in.", func() float64 { return float64(cacheStats().Fills) })
	m.gauge("fill_readers", "Clients that read along with blobs on their way in.", func() float64 { return float64(cacheStats().Readers) })
	m.total("readers_joined_total", "Readers that found their blob on its way in.", func() float64 { return float64(cacheStats().Joined) })
	m.registry.MustRegister(&quotaCollector{
		quotas: quotas,
		limit:  prometheus.NewDesc(namespace+"_quota_limit", "Pulls that an upstream allows an account in its window, as it last said.", quotaLabels, nil),
		left:   prometheus.NewDesc(namespace+"_quota_left", "Pulls that an account has left in an upstream's window, as it last said.", quotaLabels, nil),
		window: prometheus.NewDesc(namespace+"_quota_window_seconds", "The length of an upstream's window, as it last said.", quotaLabels, nil),
		kept:   prometheus.NewDesc(namespace+"_quota_reserve", "The last pulls of a quota, which are kept for those who wait for them.", quotaLabels, nil),
	})
}

// watchUpstreams adds what the ledger and the breakers say of each upstream.
func (m *metrics) watchUpstreams(l *ledger.Ledger, upstreams *upstream.Set) {
	m.registry.MustRegister(newAccountCollector(m.upstreams, l))
	m.perUpstream(prometheus.CounterValue, "saved_requests_total", "Answers to clients all of whose bytes were saved: held, or on their way to another.", func(add func(string, float64)) {
		for _, line := range l.Totals() {
			add(line.Upstream, float64(line.Held))
		}
	})
	m.perUpstream(prometheus.CounterValue, "saved_bytes_total", "Bytes to clients that did not have to come from upstream for them.", func(add func(string, float64)) {
		for _, line := range l.Totals() {
			add(line.Upstream, float64(line.Saved))
		}
	})
	m.perUpstream(prometheus.GaugeValue, "breakers_open", "Hosts of an upstream, and single repositories and paths, that are not asked, since they do not answer.", func(add func(string, float64)) {
		for _, b := range upstreams.Breakers() {
			if b.State != upstream.BreakerClosed {
				add(b.Upstream, 1)
			}
		}
	})
	m.perUpstream(prometheus.GaugeValue, "hosts_paused", "Hosts of an upstream that asked to be left alone for a while, with some of its requests or all.", func(add func(string, float64)) {
		now := time.Now()
		for _, b := range upstreams.Breakers() {
			if b.Part == "" && b.Paused.After(now) {
				add(b.Upstream, 1)
			}
		}
	})
	m.perUpstream(prometheus.GaugeValue, "hosts_behind", "Addresses of an upstream that others are asked before, since they gave wrong bytes or were slow.", func(add func(string, float64)) {
		for _, b := range upstreams.Breakers() {
			if !b.Behind.IsZero() {
				add(b.Upstream, 1)
			}
		}
	})
	m.perUpstream(prometheus.GaugeValue, "logins_refused", "Accounts of an upstream whose password it refuses: what they are for is asked for anonymously.", func(add func(string, float64)) {
		for _, login := range upstreams.RefusedLogins(context.Background()) {
			add(login.Upstream, 1)
		}
	})
}

// perUpstream adds what adds up for each upstream when it is scraped.
func (m *metrics) perUpstream(kind prometheus.ValueType, name, help string, sum func(add func(upstream string, value float64))) {
	desc := prometheus.NewDesc(namespace+"_"+name, help, []string{"upstream"}, nil)
	m.registry.MustRegister(&upstreamCollector{m.upstreams, kind, desc, sum})
}

// goMetrics are those that its library thinks of, and for how long goroutines have
// waited for locks: what many connections wait for shows there first.
func goMetrics() prometheus.Collector {
	locks := collectors.GoRuntimeMetricsRule{Matcher: regexp.MustCompile(`^/sync/mutex/wait/total:seconds$`)}
	return collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(locks))
}

// upstreamCollector shows one number of each upstream, 0 for those that have
// none.
type upstreamCollector struct {
	upstreams []string
	kind      prometheus.ValueType
	desc      *prometheus.Desc
	sum       func(add func(upstream string, value float64))
}

func (c *upstreamCollector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

func (c *upstreamCollector) Collect(ch chan<- prometheus.Metric) {
	values := map[string]float64{}
	c.sum(func(upstream string, value float64) { values[upstream] += value })
	for _, name := range c.upstreams {
		ch <- prometheus.MustNewConstMetric(c.desc, c.kind, values[name], name)
	}
}

// accountCollector shows what each account of an upstream spent, 0 of whoever asks
// from our address where nobody has. Accounts are those of the settings and of
// credential helpers: a set that strangers cannot add to, nor tokens that change.
type accountCollector struct {
	upstreams    []string
	ledger       *ledger.Ledger
	pulls, heads *prometheus.Desc
}

func newAccountCollector(upstreams []string, l *ledger.Ledger) *accountCollector {
	labels := []string{"upstream", "account"}
	return &accountCollector{
		upstreams: upstreams, ledger: l,
		pulls: prometheus.NewDesc(namespace+"_pulls_total", "GETs of manifests that an upstream answered: what Docker Hub counts.", labels, nil),
		heads: prometheus.NewDesc(namespace+"_heads_total", "HEADs of manifests that an upstream answered.", labels, nil),
	}
}

func (c *accountCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.pulls
	ch <- c.heads
}

func (c *accountCollector) Collect(ch chan<- prometheus.Metric) {
	sums := map[ledger.Key]ledger.Sum{}
	for _, name := range c.upstreams {
		sums[ledger.Key{Upstream: name}] = ledger.Sum{}
	}
	for _, line := range c.ledger.AccountTotals() {
		sums[line.Key] = line.Sum
	}
	for k, sum := range sums {
		ch <- prometheus.MustNewConstMetric(c.pulls, prometheus.CounterValue, float64(sum.Pulls), k.Upstream, k.Name)
		ch <- prometheus.MustNewConstMetric(c.heads, prometheus.CounterValue, float64(sum.Heads), k.Upstream, k.Name)
	}
}

// watchCertificate adds when the certificate that clients are shown ends.
func (m *metrics) watchCertificate(ends func() time.Time) {
	m.gauge("tls_certificate_end_timestamp_seconds", "When the TLS certificate that clients are shown ends, or one of its chain; 0 while there is none.", func() float64 {
		if end := ends(); !end.IsZero() {
			return float64(end.Unix())
		}
		return 0
	})
}

// watchConnections adds how many connections clients have.
func (m *metrics) watchConnections(open func() int64) {
	m.gauge("client_connections", "Connections of clients to the registry, of which each of its addresses takes ENTREPOT_MAX_CONNECTIONS.", func() float64 { return float64(open()) })
}

// watchClients adds what is read of the limits on clients when it is scraped.
func (m *metrics) watchClients(clients *ratelimit.Clients) {
	count := func(name, help string, value func(ratelimit.ClientStats) uint64) {
		m.total(name, help, func() float64 { return float64(value(clients.Stats())) })
	}
	m.gauge("clients_known", "Clients that are counted for ENTREPOT_CLIENT_RATE and ENTREPOT_CLIENT_TRANSFERS.", func() float64 { return float64(clients.Stats().Known) })
	count("client_requests_waited_total", "Requests that waited since their client had sent too many.", func(s ratelimit.ClientStats) uint64 { return s.Waited })
	count("client_requests_refused_total", "Requests that were told 429 since their client had sent too many.", func(s ratelimit.ClientStats) uint64 { return s.Refused })
	count("client_transfers_waited_total", "Blobs that waited since their client had too many on their way.", func(s ratelimit.ClientStats) uint64 { return s.TransfersWaited })
	count("client_transfers_refused_total", "Blobs that were told 429 since their client had too many on their way.", func(s ratelimit.ClientStats) uint64 { return s.TransfersRefused })
}

// quotaLabels tell quotas apart: each account has its own, at each address of an
// upstream. Without a name it is the one of whoever asks from our address.
var quotaLabels = []string{"upstream", "host", "account"}

// quotaCollector shows the quotas of those upstreams that told them.
type quotaCollector struct {
	quotas                    func() []upstream.Quota
	limit, left, window, kept *prometheus.Desc
}

func (c *quotaCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.limit
	ch <- c.left
	ch <- c.window
	ch <- c.kept
}

func (c *quotaCollector) Collect(ch chan<- prometheus.Metric) {
	show := func(d *prometheus.Desc, value float64, q upstream.Quota) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, q.Upstream, q.Host, q.Account)
	}
	for _, q := range c.quotas() {
		if q.Limit >= 0 {
			show(c.limit, float64(q.Limit), q)
		}
		if q.Left >= 0 {
			show(c.left, float64(q.Left), q)
		}
		if q.Reserve > 0 {
			show(c.kept, float64(q.Reserve), q)
		}
		if q.Window > 0 {
			show(c.window, q.Window.Seconds(), q)
		}
	}
}

func (m *metrics) gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: namespace, Name: name, Help: help}, value))
}

func (m *metrics) total(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, value))
}
