package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"entrepot/oci"
	"entrepot/upstream"
	"entrepot/words"

	"github.com/rs/zerolog"
)

// upstreamTimeout bounds the look at one upstream, of which each question has
// bounds of its own; from clockDoubt on it is not for a slow answer that clocks
// differ, and tokens and signed URLs live about as long as clockWrong.
const (
	upstreamTimeout = 40 * time.Second
	clockDoubt      = 30 * time.Second
	clockWrong      = 5 * time.Minute
)

// examineUpstreams asks each upstream, all at once, and tells in their order.
func examineUpstreams(ctx context.Context, cfg *Config, images []string, tell func(finding)) {
	wanted := map[string][]wantedImage{}
	for _, name := range images {
		repo, reference, digest, err := cfg.Names().Reference(name)
		if !digest.IsZero() {
			reference = digest.String()
		}
		if err != nil {
			tell(failed(badImage, "image "+words.Quote(name), err.Error(), "name it as clients do: alpine:3.20, ghcr.io/owner/name:tag"))
			continue
		}
		wanted[repo.Host] = append(wanted[repo.Host], wantedImage{repo, reference})
	}
	warnings := &upstreamWarnings{}
	all, err := openUpstreams(ctx, cfg, readBuild(), upstream.Config{Warn: warnings.add}, zerolog.Nop())
	if err != nil {
		tell(failed(badSettings, "upstreams", err.Error(), ""))
		return
	}
	defer all.Close()
	settings := cfg.UpstreamSettings()
	results := make([][]finding, len(settings))
	var asking sync.WaitGroup
	for i, u := range settings {
		asking.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
			defer cancel()
			p := patient{cfg: cfg, settings: u, client: all.Client(u.Name), warnings: warnings, images: wanted[u.Name]}
			results[i] = p.examine(ctx)
		})
	}
	asking.Wait()
	for _, list := range results {
		for _, f := range list {
			tell(f)
		}
	}
}

type wantedImage struct {
	repo      oci.Repository
	reference string
}

func (im wantedImage) String() string {
	if strings.Contains(im.reference, ":") {
		return im.repo.String() + "@" + im.reference
	}
	return im.repo.String() + ":" + im.reference
}

// upstreamWarnings keeps what upstreams' clients warn of.
type upstreamWarnings struct {
	mu  sync.Mutex // guards all
	all []upstream.Warning
}

func (w *upstreamWarnings) add(one upstream.Warning) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = append(w.all, one)
}

// forget lets of find what comes from now on.
func (w *upstreamWarnings) forget(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.all = slices.DeleteFunc(w.all, func(one upstream.Warning) bool { return one.Upstream == name })
}

// of is the first warning of an upstream's login.
func (w *upstreamWarnings) of(name string) (upstream.Warning, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.IndexFunc(w.all, func(one upstream.Warning) bool {
		return one.Upstream == name && slices.Contains([]upstream.Trouble{upstream.CredentialsRefused, upstream.CredentialsMissing, upstream.CredentialsWithheld}, one.Trouble)
	})
	if i < 0 {
		return upstream.Warning{}, false
	}
	return w.all[i], true
}

// patient is an upstream that is being looked at.
type patient struct {
	cfg      *Config
	settings UpstreamSettings
	client   *upstream.Client
	warnings *upstreamWarnings
	images   []wantedImage
}

func (p patient) subject() string { return "upstream " + p.settings.Name }

func (p patient) examine(ctx context.Context) []finding {
	if bool(p.cfg.Offline) || p.settings.Offline {
		all := []finding{well(p.subject(), "offline, as it is set to be")}
		for _, im := range p.images {
			all = append(all, doubtful("image "+im.String(), "not looked up: its upstream is offline", "see whether it is held: entrepot explain "+im.String()))
		}
		return all
	}
	var all []finding
	for _, ping := range p.client.Ping(ctx) {
		f := p.judge(ctx, ping)
		all = append(all, f)
		if skew := time.Until(ping.Clock).Abs(); !ping.Clock.IsZero() && skew > clockDoubt {
			all = append(all, clockFinding(ping.Host, skew))
		}
	}
	if all[0].State == "failed" && all[0].Code != int(badLogin) {
		return all
	}
	all = append(all, p.examineLogins(ctx)...)
	all = append(all, p.examineImages(ctx)...)
	return append(all, p.examineQuota(ctx)...)
}

// judge reads the answer of one address.
func (p patient) judge(ctx context.Context, ping upstream.Ping) finding {
	subject := p.subject()
	if len(p.settings.Mirrors) > 0 {
		subject += " at " + ping.Host
	}
	if ping.Err != nil {
		return p.diagnose(ctx, subject, ping)
	}
	if refused, ok := p.warnings.of(p.settings.Name); ok {
		return p.refused(subject, refused)
	}
	detail := fmt.Sprintf("answers within %s", ping.Took.Round(time.Millisecond))
	switch {
	case ping.Status == http.StatusUnauthorized && ping.Account == "":
		return well(subject, "%s; without a login it lets nobody look around", detail)
	case ping.Account != "":
		return well(subject, "%s, signed in as %s", detail, ping.Account)
	}
	return well(subject, "%s, asked anonymously", detail)
}

// refused says what to do about a login.
func (p patient) refused(subject string, w upstream.Warning) finding {
	if w.Trouble == upstream.CredentialsWithheld {
		return failed(badLogin, subject, w.Detail, "set the URL to the registry's own address, in the domain of its token service, "+w.Host)
	}
	where := ""
	if w.Account != "" {
		where = ", which " + p.cfg.loginSettings(p.settings.Name, w.Account) + " sets"
	}
	return failed(badLogin, subject, w.Detail, "look at the user name and the password"+where+": Docker Hub wants a personal access token in its place")
}

// examineLogins tries the accounts that single paths have.
func (p patient) examineLogins(ctx context.Context) []finding {
	var all []finding
	for _, l := range p.settings.Logins {
		subject := "login " + l.Username + " for " + p.settings.Name + "/" + l.scope()
		p.warnings.forget(p.settings.Name)
		ping := p.client.PingAs(ctx, l.Prefix)
		warning, warned := p.warnings.of(p.settings.Name)
		switch {
		case ping.Err != nil:
			all = append(all, p.diagnose(ctx, subject, ping))
		case warned:
			all = append(all, p.refused(subject, warning))
		case ping.Account != l.Username: // refused before, or not asked for
			all = append(all, doubtful(subject, "it is not known whether it is good: "+ping.Host+" was asked anonymously", "name an image that it is for: entrepot doctor "+p.settings.Name+"/"+l.Prefix+"/...:tag"))
		default:
			all = append(all, well(subject, "signed in"))
		}
	}
	return all
}

// diagnose says of what the question to an address failed.
func (p patient) diagnose(ctx context.Context, subject string, ping upstream.Ping) finding {
	detail := oci.Why(ping.Err)
	var nameless *net.DNSError
	switch {
	case errors.As(ping.Err, &nameless):
		return failed(badName, subject, detail, "look at /etc/resolv.conf and the network; behind a forward proxy set HTTPS_PROXY")
	case upstream.IsTLS(ping.Err):
		return failed(badTLS, subject, detail, "look at the clock; where the certificate comes from an authority of your own, set ENTREPOT_UPSTREAM_<n>_CA_FILE")
	case oci.CodeOf(ping.Err) == oci.TooManyRequests:
		return failed(badQuota, subject, detail, p.limitRemedy(ping.Account, ping.Host))
	case oci.CodeOf(ping.Err) == oci.Denied:
		return failed(badLogin, subject, detail, "look at the user name and the password, and at what the account may do")
	}
	remedy := "look at the network, and at a firewall on the way; behind a forward proxy set HTTPS_PROXY"
	if ctx.Err() != nil {
		detail = "no answer in time"
	}
	return failed(badConnection, subject, detail, remedy)
}

// limitRemedy says what to do about the limits on an account.
func (p patient) limitRemedy(account, host string) string {
	remedy := "wait; what is held is served meanwhile"
	if account == "" {
		if more := p.cfg.signInRemedy(p.settings.Name, host); more != "" {
			remedy += ". " + strings.ToUpper(more[:1]) + more[1:]
		}
	}
	return remedy
}

func clockFinding(host string, skew time.Duration) finding {
	detail := fmt.Sprintf("it and %s are %s apart", host, skew.Round(time.Second))
	const remedy = "let the machine's clock be set by the network: tokens, signed URLs and the age of tags depend on it"
	if skew > clockWrong {
		return failed(badClock, "clock", detail, remedy)
	}
	return doubtful("clock", detail, remedy)
}

func (p patient) examineImages(ctx context.Context) []finding {
	var all []finding
	for _, im := range p.images {
		subject := "image " + im.String()
		res, _, err := p.client.Resolve(ctx, im.repo, im.reference, oci.Ask{Refresh: true})
		if err != nil {
			all = append(all, failed(badImage, subject, oci.Why(err), "see that it is there, and that the account may pull it"))
			continue
		}
		all = append(all, well(subject, "%s", words.Digest(res.Digest)))
	}
	return all
}

// examineQuota asks Docker Hub by the image that is there for it ("Docker Hub
// usage and limits", pulls), whose HEAD is not counted.
func (p patient) examineQuota(ctx context.Context) []finding {
	if p.settings.Name == oci.DockerHub && len(p.client.Quotas()) == 0 {
		probe := oci.Repository{Host: oci.DockerHub, Path: "ratelimitpreview/test"}
		_, _, _ = p.client.Resolve(ctx, probe, "latest", oci.Ask{}) // its headers are what counts
	}
	var all []finding
	for _, q := range p.client.Quotas() {
		if q.Limit < 0 || q.Left < 0 {
			continue
		}
		who := q.Account
		if who == "" {
			who = "this address"
		}
		subject, detail := "quota of "+who+" at "+q.Host, fmt.Sprintf("%d of %d pulls left", q.Left, q.Limit)
		if q.Window > 0 {
			detail += " in " + Duration(q.Window).String()
		}
		switch {
		case q.Left == 0:
			all = append(all, failed(badQuota, subject, detail, p.limitRemedy(q.Account, q.Host)))
		case q.Left*10 < q.Limit:
			all = append(all, doubtful(subject, detail, p.limitRemedy(q.Account, q.Host)))
		default:
			all = append(all, well(subject, "%s", detail))
		}
	}
	return all
}
