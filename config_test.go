package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"entrepot/cache"
	"entrepot/internal/ocitest"
	"entrepot/oci"
	"entrepot/ratelimit"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
	"software.sslmate.com/src/go-pkcs12"
)

func environ(pairs ...string) []string { return append([]string{"PATH=/bin", "HOME=/root"}, pairs...) }

func mustLoad(t *testing.T, pairs ...string) *Config {
	t.Helper()
	c, err := loadConfig(environ(pairs...))
	if err != nil {
		t.Fatalf("loadConfig(%v): %v", pairs, err)
	}
	return c
}

func writeFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func certificatePEM(t *testing.T) string {
	t.Helper()
	s := httptest.NewTLSServer(http.NotFoundHandler())
	defer s.Close()
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestNothingNeedsToBeSet(t *testing.T) {
	c := mustLoad(t)
	want := []string{"docker.io", "mcr.microsoft.com", "ghcr.io", "quay.io", "registry.k8s.io", "gcr.io", "public.ecr.aws"}
	if diff := cmp.Diff(want, c.Names().Upstreams); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	for got, want := range map[fmt.Stringer]string{
		c.Memory: "64MiB", c.CacheSize: "0", c.MinFree: "5%", c.TagTTL: "5m", c.ShutdownTimeout: "8s",
		c.StreamThreshold: "32MiB", c.CheckWait: "2s", c.HeaderTimeout: "15s",
	} {
		if got.String() != want {
			t.Errorf("%T default is %s, want %s", got, got, want)
		}
	}
	if c.Listen != ":5000" || c.AdminListen != "127.0.0.1:5001" || c.MetricsListen != "" || c.Data != "./data" || bool(c.Offline) || c.Streams != 4 || !bool(c.Prefetch) {
		t.Errorf("defaults are %+v", c)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("the defaults are warned about: %v", w)
	}
}

func TestEverySettingReachesItsField(t *testing.T) {
	ca := writeFile(t, certificatePEM(t))
	token := writeFile(t, "  tok en \n")
	c := mustLoad(t,
		"ENTREPOT_LISTEN=127.0.0.1:6000", "ENTREPOT_ADMIN_LISTEN=", "ENTREPOT_METRICS_LISTEN=[::1]:9000",
		"ENTREPOT_DATA=/srv/my data", "ENTREPOT_CACHE_SIZE=200GiB", "ENTREPOT_MIN_FREE=0.5%", "ENTREPOT_MEMORY=0",
		"ENTREPOT_UPSTREAMS= ghcr.io , index.docker.io,QUAY.io", "ENTREPOT_DEFAULT_UPSTREAM=ghcr.io",
		"ENTREPOT_OWN_NAMES=Cache.example:5000, cache", "ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD_FILE="+token,
		"ENTREPOT_UPSTREAM_0_NAME=ghcr.io", "ENTREPOT_UPSTREAM_0_USERNAME=robot$x", "ENTREPOT_UPSTREAM_0_PASSWORD=p:w d",
		"ENTREPOT_UPSTREAM_1_NAME=registry.test:5443", "ENTREPOT_UPSTREAM_1_URL=https://Registry.test:5443/Mirror/x/", "ENTREPOT_UPSTREAM_1_CA_FILE="+ca, "ENTREPOT_UPSTREAM_1_ALLOW_PRIVATE=true",
		"ENTREPOT_TAG_TTL=90s", "ENTREPOT_OFFLINE=1", "ENTREPOT_SHUTDOWN_TIMEOUT=0s", "ENTREPOT_LOG_LEVEL=debug", "ENTREPOT_LOG_FORMAT=json",
		"ENTREPOT_SCRUB_RATE=0", "ENTREPOT_ADMIN_TOKEN=0123456789abcdef", "ENTREPOT_UPSTREAM_0_SHARE=12.5%",
		"ENTREPOT_NEGATIVE_TTL=0s", "ENTREPOT_REFRESH_FROM=10.0.0.0/8, ::1,192.0.2.7", "ENTREPOT_FOREIGN_HOSTS=MCR.microsoft.com,*.data.MCR.microsoft.com,http://near.test:81", "ENTREPOT_QUOTA_RESERVE=0", "ENTREPOT_QUEUE_WAIT=40s",
		"ENTREPOT_UPSTREAM_0_OFFLINE=true", "ENTREPOT_UPSTREAM_1_KEEP_DELETED=off", "ENTREPOT_UPSTREAM_0_RATE=0", "ENTREPOT_UPSTREAM_1_RATE=2.5",
		"ENTREPOT_STREAMS=8", "ENTREPOT_STREAM_THRESHOLD=0", "ENTREPOT_PREFETCH=off", "ENTREPOT_CHECK_WAIT=0s", "ENTREPOT_HEADER_TIMEOUT=1m",
	)
	type plain struct {
		Name, URL, Username, Password string
		CA, Private                   bool
	}
	var got []plain
	for _, u := range c.UpstreamSettings() {
		password, err := u.Login.Password.Value()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, plain{u.Name, u.URL, u.Login.Username, password, u.CA.path != "", u.AllowPrivate})
	}
	want := []plain{
		{Name: "ghcr.io", Username: "robot$x", Password: "p:w d"},
		{Name: "docker.io", Username: "me", Password: "  tok en "},
		{Name: "quay.io"},
		{Name: "registry.test:5443", URL: "https://registry.test:5443/Mirror/x", CA: true, Private: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("upstreams (-want +got):\n%s", diff)
	}
	if c.AdminListen != "" || c.MetricsListen != "[::1]:9000" || c.Data != "/srv/my data" || !bool(c.Offline) {
		t.Errorf("config is %+v", c)
	}
	if c.CacheSize != 200<<30 || c.MinFree.Of(1000) != 5 || c.Memory != 0 || c.TagTTL.Duration() != 90*time.Second || c.ShutdownTimeout != 0 {
		t.Errorf("sizes and times are %+v", c)
	}
	// Zero means the default to the cache, and the least to whoever sets it.
	if cc := c.cache(new(observer)); cc.Streams != 8 || cc.StreamThreshold != 1 || cc.Prefetch >= 0 || cc.CheckWait != 1 {
		t.Errorf("the cache's config is %+v", cc)
	}
	cc := c.cache(new(observer))
	if !cc.Without["ghcr.io"] || cc.Without["docker.io"] || !cc.DropDeleted["registry.test:5443"] || cc.DropDeleted["docker.io"] || cc.Remember >= 0 {
		t.Errorf("the cache's config is %+v", cc)
	}
	var limits []ratelimit.Limits
	for _, u := range c.UpstreamSettings() {
		limits = append(limits, c.limits(u))
	}
	rest := ratelimit.Limits{Reserve: -1, Wait: 40 * time.Second}
	unbound, slow := rest, rest
	unbound.Rate, slow.Rate = -1, 2.5
	if diff := cmp.Diff([]ratelimit.Limits{unbound, rest, rest, slow}, limits); diff != "" {
		t.Errorf("limits (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(ForeignHosts{"mcr.microsoft.com", "*.data.mcr.microsoft.com", "http://near.test:81"}, c.ForeignHosts); diff != "" {
		t.Errorf("foreign hosts (-want +got):\n%s", diff)
	}
	for remote, may := range map[string]bool{
		"10.1.2.3:4": true, "[::ffff:10.1.2.3]:4": true, "[::1]:4": true, "192.0.2.7:1": true,
		"192.0.2.8:1": false, "127.0.0.1:5": false, "@": false, "": false,
	} {
		if c.RefreshFrom.Contains(remote) != may {
			t.Errorf("%q may refresh: %t, want %t", remote, !may, may)
		}
	}
	if diff := cmp.Diff(map[string]float64{"ghcr.io": 0.125}, c.shares()); diff != "" || c.ScrubRate != 0 || !c.AdminToken.IsSet() {
		t.Errorf("shares (-want +got):\n%s\nscrub rate %s", diff, c.ScrubRate)
	}
	if !slices.Equal(c.offline(), c.upstreamNames()) {
		t.Errorf("offline are %q", c.offline())
	}
	if time.Duration(c.HeaderTimeout) != time.Minute {
		t.Errorf("ENTREPOT_HEADER_TIMEOUT is %s", c.HeaderTimeout)
	}
	if diff := cmp.Diff(HostNames{"cache.example:5000", "cache"}, c.OwnNames); diff != "" {
		t.Errorf("own names (-want +got):\n%s", diff)
	}
}

func TestListsInListsReachTheirFields(t *testing.T) {
	ca := writeFile(t, certificatePEM(t))
	c := mustLoad(t,
		"ENTREPOT_UPSTREAM_0_NAME=docker.io",
		"ENTREPOT_UPSTREAM_0_URL_0=https://mirror.gcr.io", "ENTREPOT_UPSTREAM_0_URL_0_FIRST=on",
		"ENTREPOT_UPSTREAM_0_URL_1=http://Near.test:5000/hub/", "ENTREPOT_UPSTREAM_0_URL_1_USERNAME=mirror", "ENTREPOT_UPSTREAM_0_URL_1_PASSWORD_FILE="+writeFile(t, "m\n"), "ENTREPOT_UPSTREAM_0_URL_1_ALLOW_PRIVATE=true",
		"ENTREPOT_UPSTREAM_0_URL_2=https://far.test", "ENTREPOT_UPSTREAM_0_URL_2_CA_FILE="+ca,
		"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=hub",
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=team", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=t", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=one",
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX=/team/app/", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_USERNAME=a", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PASSWORD_FILE="+writeFile(t, "two\n"),
		"ENTREPOT_UPSTREAM_1_NAME=a.test", "ENTREPOT_UPSTREAM_1_CREDENTIAL_0_PREFIX=x", "ENTREPOT_UPSTREAM_1_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_1_CREDENTIAL_0_PASSWORD=x",
		"ENTREPOT_TAG_TTL=10m", "ENTREPOT_TAG_TTL_0_MATCH=*:latest", "ENTREPOT_TAG_TTL_0_TTL=1m", "ENTREPOT_TAG_TTL_1_MATCH=docker.io/library/*:[0-9]*.[0-9]*", "ENTREPOT_TAG_TTL_1_TTL=never",
	)
	settings := c.UpstreamSettings()
	hub, other := settings[0], settings[len(settings)-1]
	var got []string
	for i, l := range hub.logins() {
		password, err := l.Password.Value()
		if err != nil {
			t.Fatal(err)
		}
		prefix := ""
		if i > 0 && i <= len(hub.Logins) {
			prefix = hub.Logins[i-1].Prefix
		}
		got = append(got, prefix+" "+l.Username+":"+password)
	}
	if diff := cmp.Diff([]string{" me:hub", "team t:one", "team/app a:two", " :", " mirror:m", " :"}, got); diff != "" {
		t.Errorf("logins (-want +got):\n%s", diff)
	}
	got = nil
	for _, m := range hub.mirrors() {
		pem, err := m.CA()
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s first %t, login %t, CA %t, private %t", m.URL, m.First, m.Credentials != nil, pem != nil, m.AllowPrivate))
	}
	if diff := cmp.Diff([]string{
		"https://mirror.gcr.io first true, login false, CA false, private false",
		"http://near.test:5000/hub first false, login true, CA false, private true",
		"https://far.test first false, login false, CA true, private false",
	}, got); diff != "" {
		t.Errorf("mirrors (-want +got):\n%s", diff)
	}
	if other.Name != "a.test" || len(other.Logins) != 1 || !slices.Equal(other.accounts(), []string{"x"}) || !c.hasSecrets() {
		t.Errorf("the other upstream is %+v", other)
	}
	want := []cache.Rule{{Match: "*:latest", TTL: time.Minute}, {Match: "docker.io/library/*:[0-9]*.[0-9]*", TTL: cache.Never}}
	if cc := c.cache(new(observer)); cc.TTL != 10*time.Minute {
		t.Errorf("the TTL is %v", cc.TTL)
	} else if diff := cmp.Diff(want, cc.Rules); diff != "" {
		t.Errorf("TTLs by pattern (-want +got):\n%s", diff)
	}
	var out bytes.Buffer
	if err := printConfig(&out, c); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"ENTREPOT_UPSTREAM_0_URL_0 ", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX ", "ENTREPOT_TAG_TTL_1_TTL "} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("not printed: %s", line)
		}
	}
}

// TestAccountsOfRules: they belong to what the source covers.
func TestAccountsOfRules(t *testing.T) {
	c := mustLoad(t,
		"ENTREPOT_RULE_0_TARGET=ours/*", "ENTREPOT_RULE_0_SOURCE=ghcr.io/ours/*", "ENTREPOT_RULE_0_USERNAME=below", "ENTREPOT_RULE_0_PASSWORD=p",
		"ENTREPOT_RULE_1_TARGET=app", "ENTREPOT_RULE_1_SOURCE=ghcr.io/ours/app", "ENTREPOT_RULE_1_USERNAME=alone", "ENTREPOT_RULE_1_PASSWORD=p",
		"ENTREPOT_RULE_2_TARGET=quay/*", "ENTREPOT_RULE_2_SOURCE=quay.io/*", "ENTREPOT_RULE_2_USERNAME=all", "ENTREPOT_RULE_2_PASSWORD=p",
		"ENTREPOT_RULE_3_TARGET=dotnet/*", "ENTREPOT_RULE_3_SOURCE=mcr.microsoft.com/dotnet/*",
	)
	for _, row := range []struct{ host, path, want string }{
		{"ghcr.io", "ours/x", "below"},
		{"ghcr.io", "ours/app", "alone"},
		{"ghcr.io", "ours/app/x", "below"},
		{"ghcr.io", "theirs/x", ""},
		{"quay.io", "x/y", "all"},
	} {
		i := slices.IndexFunc(c.UpstreamSettings(), func(u UpstreamSettings) bool { return u.Name == row.host })
		login, err := credentials(t.Context(), c, c.UpstreamSettings()[i], zerolog.Nop()).credentials(t.Context(), oci.Repository{Host: row.host, Path: row.path})
		if err != nil || login.Username != row.want {
			t.Errorf("%s/%s is asked for as %q, %v; want %q", row.host, row.path, login.Username, err, row.want)
		}
	}
	if !c.hasSecrets() {
		t.Error("what a rule's account may read is taken for what everybody may")
	}
}

// Each row is an environment and, in order, the variable and part of the text
// of every problem that is to be reported.
func TestProblemsAreNamed(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "absent")
	text := writeFile(t, "no certificate")
	ca := writeFile(t, certificatePEM(t))
	empty := writeFile(t, "\n")
	rights := writeFile(t, "rules: []\n")
	chain, key := pairFiles(t, t.TempDir(), "tls", ocitest.NewCA().Certificate())
	for _, row := range []struct {
		name string
		env  []string
		want []problem
	}{
		{"misspelt", []string{"ENTREPOT_LSITEN=:1"}, []problem{{"ENTREPOT_LSITEN", "did you mean ENTREPOT_LISTEN?"}}},
		{"misspelt in a list", []string{"ENTREPOT_UPSTREAM_12_PASWORD_FILE=x"}, []problem{{"ENTREPOT_UPSTREAM_12_PASWORD_FILE", "did you mean ENTREPOT_UPSTREAM_12_PASSWORD_FILE?"}}},
		{"lower case", []string{"entrepot_data=x"}, []problem{{"entrepot_data", "did you mean ENTREPOT_DATA?"}}},
		{"number left out", []string{"ENTREPOT_UPSTREAM_URL=x"}, []problem{{"ENTREPOT_UPSTREAM_URL", "did you mean ENTREPOT_UPSTREAM_<n>_URL?"}}},
		{"number with a zero", []string{"ENTREPOT_UPSTREAM_00_NAME=x"}, []problem{{"ENTREPOT_UPSTREAM_00_NAME", "did you mean ENTREPOT_UPSTREAM_0_NAME?"}}},
		{"number out of bounds", []string{"ENTREPOT_UPSTREAM_99999_NAME=x"}, []problem{{"ENTREPOT_UPSTREAM_99999_NAME", "no such setting"}}},
		{"nothing near", []string{"ENTREPOT_FLUX_CAPACITOR=x"}, []problem{{"ENTREPOT_FLUX_CAPACITOR", "entrepot help config lists them"}}},
		{"prefix alone", []string{"ENTREPOT_=x"}, []problem{{"ENTREPOT_", "no such setting"}}},
		{"no such file variable", []string{"ENTREPOT_DATA_FILE=x"}, []problem{{"ENTREPOT_DATA_FILE", "no such setting"}}},
		{"another service of Kubernetes", []string{"ENTREPOT_ADMIN_PORT_5001_TCP_ADDR=10.0.0.1"}, []problem{{"ENTREPOT_ADMIN_PORT_5001_TCP_ADDR", "enableServiceLinks: false"}}},
		{"value of an unknown name stays secret", []string{"ENTREPOT_DOCKERHUB_PASSWD=hunter2"}, []problem{{"ENTREPOT_DOCKERHUB_PASSWD", "did you mean ENTREPOT_DOCKERHUB_PASSWORD?"}}},

		{"empty", []string{"ENTREPOT_TAG_TTL="}, []problem{{"ENTREPOT_TAG_TTL", "is empty: want a value, or no such variable for the default, 5m"}}},
		{"a cache for nothing", []string{"ENTREPOT_CACHE_SIZE=1MiB"}, []problem{{"ENTREPOT_CACHE_SIZE", "want 4MiB or more"}}},
		{"a token that can be guessed", []string{"ENTREPOT_ADMIN_TOKEN=hunter2"}, []problem{{"ENTREPOT_ADMIN_TOKEN", "16 characters or more"}}},
		{"a token that no header carries", []string{"ENTREPOT_ADMIN_TOKEN=hunter2 hunter2 hunter2"}, []problem{{"ENTREPOT_ADMIN_TOKEN", "without spaces"}}},
		{"a share of no cap", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_SHARE=5%"}, []problem{{"ENTREPOT_UPSTREAM_0_SHARE", "is a share of ENTREPOT_CACHE_SIZE"}}},
		{"no share", []string{"ENTREPOT_CACHE_SIZE=1GiB", "ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_SHARE=0%"}, []problem{{"ENTREPOT_UPSTREAM_0_SHARE", "is not a share"}}},
		{"more than everything", []string{"ENTREPOT_CACHE_SIZE=1GiB", "ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_SHARE=101%"}, []problem{{"ENTREPOT_UPSTREAM_0_SHARE", "is more than everything"}}},
		{"a rate of words", []string{"ENTREPOT_CLIENT_RATE=fast"}, []problem{{"ENTREPOT_CLIENT_RATE", "is not a rate"}}},
		{"no number of transfers", []string{"ENTREPOT_CLIENT_TRANSFERS=-1"}, []problem{{"ENTREPOT_CLIENT_TRANSFERS", "not a number from 1 to 1000000, or 0 for no bound"}}},
		{"too many connections", []string{"ENTREPOT_MAX_CONNECTIONS=1000001"}, []problem{{"ENTREPOT_MAX_CONNECTIONS", "not a number from 1 to 1000000"}}},
		{"no stream at all", []string{"ENTREPOT_STREAMS=0"}, []problem{{"ENTREPOT_STREAMS", "not a number from 1 to 64"}}},
		{"too many streams", []string{"ENTREPOT_STREAMS=1000"}, []problem{{"ENTREPOT_STREAMS", "not a number from 1 to 64"}}},
		{"neither on nor off", []string{"ENTREPOT_PREFETCH=maybe"}, []problem{{"ENTREPOT_PREFETCH", "neither true nor false"}}},
		{"waiting beyond the answer", []string{"ENTREPOT_QUEUE_WAIT=60s"}, []problem{{"ENTREPOT_QUEUE_WAIT", "want 10s or less"}}},
		{"a check beyond the answer", []string{"ENTREPOT_CHECK_WAIT=20s"}, []problem{{"ENTREPOT_CHECK_WAIT", "want 7.5s or less"}}},
		{"waiting for nothing", []string{"ENTREPOT_QUEUE_WAIT=1ns"}, []problem{{"ENTREPOT_QUEUE_WAIT", "want 250ms or more, or 0s"}}},
		{"an access log that nobody sees", []string{"ENTREPOT_ACCESS_LOG=true", "ENTREPOT_LOG_LEVEL=warn"}, []problem{{"ENTREPOT_ACCESS_LOG", "want info or debug there"}}},
		{"no time for headers", []string{"ENTREPOT_HEADER_TIMEOUT=0s"}, []problem{{"ENTREPOT_HEADER_TIMEOUT", "want 1s or more"}}},
		{"empty file name", []string{"ENTREPOT_DOCKERHUB_PASSWORD_FILE="}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "is empty: want the path"}}},
		{"empty secret", []string{"ENTREPOT_DOCKERHUB_PASSWORD="}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD", "is empty"}}},
		{"blank", []string{"ENTREPOT_UPSTREAMS= "}, []problem{{"ENTREPOT_UPSTREAMS", "empty item"}}},

		{"address without colon", []string{"ENTREPOT_LISTEN=5000"}, []problem{{"ENTREPOT_LISTEN", `"5000" is not an address to listen on: want [host]:port`}}},
		{"address with scheme", []string{"ENTREPOT_LISTEN=http://0.0.0.0:5000"}, []problem{{"ENTREPOT_LISTEN", "is not an address"}}},
		{"port too large", []string{"ENTREPOT_LISTEN=:65536"}, []problem{{"ENTREPOT_LISTEN", "is not an address"}}},
		{"port by name", []string{"ENTREPOT_LISTEN=:http"}, []problem{{"ENTREPOT_LISTEN", "is not an address"}}},
		{"one address twice", []string{"ENTREPOT_METRICS_LISTEN=127.0.0.1:5000"}, []problem{{"ENTREPOT_METRICS_LISTEN", "is taken by ENTREPOT_LISTEN (:5000)"}}},
		{"size without unit letter", []string{"ENTREPOT_CACHE_SIZE=200G"}, []problem{{"ENTREPOT_CACHE_SIZE", `"200G" is not a size: want`}}},
		{"negative size", []string{"ENTREPOT_CACHE_SIZE=-1GiB"}, []problem{{"ENTREPOT_CACHE_SIZE", "is not a size"}}},
		{"size beyond bounds", []string{"ENTREPOT_MEMORY=99999999PiB"}, []problem{{"ENTREPOT_MEMORY", "more than any disk holds"}}},
		{"share of everything", []string{"ENTREPOT_MIN_FREE=100%"}, []problem{{"ENTREPOT_MIN_FREE", "no room for anything"}}},
		{"share of nonsense", []string{"ENTREPOT_MIN_FREE=a%"}, []problem{{"ENTREPOT_MIN_FREE", "is not a share"}}},
		{"duration without unit", []string{"ENTREPOT_TAG_TTL=5"}, []problem{{"ENTREPOT_TAG_TTL", "want a number with a unit"}}},
		{"negative duration", []string{"ENTREPOT_SHUTDOWN_TIMEOUT=-8s"}, []problem{{"ENTREPOT_SHUTDOWN_TIMEOUT", "is not a duration"}}},
		{"switch", []string{"ENTREPOT_OFFLINE=yes"}, []problem{{"ENTREPOT_OFFLINE", `"yes" is neither true nor false`}}},
		{"level", []string{"ENTREPOT_LOG_LEVEL=verbose"}, []problem{{"ENTREPOT_LOG_LEVEL", `"verbose" is none of debug, info, warn or error`}}},
		{"format", []string{"ENTREPOT_LOG_FORMAT=text"}, []problem{{"ENTREPOT_LOG_FORMAT", "none of auto, console or json"}}},
		{"directory", []string{"ENTREPOT_DATA=/data\n"}, []problem{{"ENTREPOT_DATA", "is not a directory"}}},
		{"a reserve that is no share", []string{"ENTREPOT_QUOTA_RESERVE=10"}, []problem{{"ENTREPOT_QUOTA_RESERVE", "is not a share: want a share such as 10%"}}},
		{"a collector without a scheme", []string{"ENTREPOT_TRACE_ENDPOINT=collector:4317"}, []problem{{"ENTREPOT_TRACE_ENDPOINT", "is not where a collector can be: want http(s)://host"}}},
		{"a collector with a password", []string{"ENTREPOT_TRACE_ENDPOINT=https://me:secret@collector"}, []problem{{"ENTREPOT_TRACE_ENDPOINT", "would be shown in logs"}}},
		{"a reserve of more than all", []string{"ENTREPOT_QUOTA_RESERVE=101%"}, []problem{{"ENTREPOT_QUOTA_RESERVE", "is more than everything"}}},
		{"a rate that is none", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_RATE=5/s"}, []problem{{"ENTREPOT_UPSTREAM_0_RATE", "want requests per second"}}},
		{"a rate of next to nothing", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_RATE=0.001"}, []problem{{"ENTREPOT_UPSTREAM_0_RATE", "from 0.01"}}},
		{"a network with bits behind its prefix", []string{"ENTREPOT_REFRESH_FROM=10.1.0.0/8"}, []problem{{"ENTREPOT_REFRESH_FROM", "want 10.0.0.0/8"}}},
		{"a network by name", []string{"ENTREPOT_REFRESH_FROM=localhost"}, []problem{{"ENTREPOT_REFRESH_FROM", "is not a network"}}},
		{"a foreign host with a path", []string{"ENTREPOT_FOREIGN_HOSTS=https://a.test/x"}, []problem{{"ENTREPOT_FOREIGN_HOSTS", "is not a host"}}},
		{"every foreign host", []string{"ENTREPOT_FOREIGN_HOSTS=*"}, []problem{{"ENTREPOT_FOREIGN_HOSTS", "is not a host"}}},
		{"every foreign host of a top domain", []string{"ENTREPOT_FOREIGN_HOSTS=*.com"}, []problem{{"ENTREPOT_FOREIGN_HOSTS", "is not a host"}}},
		{"user with colon", []string{"ENTREPOT_DOCKERHUB_USERNAME=a:b", "ENTREPOT_DOCKERHUB_PASSWORD=x"}, []problem{{"ENTREPOT_DOCKERHUB_USERNAME", "is not a user name"}}},

		{"upstream with scheme", []string{"ENTREPOT_UPSTREAMS=https://ghcr.io"}, []problem{{"ENTREPOT_UPSTREAMS", "without https://"}}},
		{"upstream without dot", []string{"ENTREPOT_UPSTREAMS=docker.io,internal"}, []problem{{"ENTREPOT_UPSTREAMS", "internal:5000"}}},
		{"upstream twice by folding", []string{"ENTREPOT_UPSTREAMS=docker.io,index.docker.io"}, []problem{{"ENTREPOT_UPSTREAMS", "names docker.io twice"}}},
		{"trailing comma", []string{"ENTREPOT_UPSTREAMS=docker.io,"}, []problem{{"ENTREPOT_UPSTREAMS", "empty item"}}},
		{"unknown default", []string{"ENTREPOT_DEFAULT_UPSTREAM=example.com"}, []problem{{"ENTREPOT_DEFAULT_UPSTREAM", "example.com is not an upstream: want one of docker.io, mcr"}}},
		{"default by default", []string{"ENTREPOT_UPSTREAMS=ghcr.io"}, []problem{{"ENTREPOT_DEFAULT_UPSTREAM", "docker.io is not an upstream: want one of ghcr.io"}}},
		{"own name is an upstream", []string{"ENTREPOT_OWN_NAMES=ghcr.io"}, []problem{{"ENTREPOT_OWN_NAMES", "cannot be a name of this cache"}}},
		{"own name with scheme", []string{"ENTREPOT_OWN_NAMES=http://cache"}, []problem{{"ENTREPOT_OWN_NAMES", "is not a host name"}}},
		{"Docker Hub account without Docker Hub", []string{"ENTREPOT_UPSTREAMS=ghcr.io", "ENTREPOT_DEFAULT_UPSTREAM=ghcr.io", "ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD=b"}, []problem{{"ENTREPOT_DOCKERHUB_USERNAME", "docker.io is not an upstream"}}},
		{"password without user", []string{"ENTREPOT_DOCKERHUB_PASSWORD=hunter2"}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD", "is set without ENTREPOT_DOCKERHUB_USERNAME"}}},
		{"user without password", []string{"ENTREPOT_DOCKERHUB_USERNAME=a"}, []problem{{"ENTREPOT_DOCKERHUB_USERNAME", "is set without ENTREPOT_DOCKERHUB_PASSWORD or ENTREPOT_DOCKERHUB_PASSWORD_FILE"}}},
		{"rule without a source", []string{"ENTREPOT_RULE_0_TARGET=a/*"}, []problem{{"ENTREPOT_RULE_0_SOURCE", "is not set, but others of ENTREPOT_RULE_0_ are"}}},
		{"rule without a target", []string{"ENTREPOT_RULE_0_SOURCE=docker.io/a/*"}, []problem{{"ENTREPOT_RULE_0_TARGET", "is not set"}}},
		{"rule with a * in the middle", []string{"ENTREPOT_RULE_0_TARGET=a/*/b", "ENTREPOT_RULE_0_SOURCE=docker.io/a"}, []problem{{"ENTREPOT_RULE_0_TARGET", "a * that is not its whole last part"}}},
		{"rule with one *", []string{"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=docker.io/a"}, []problem{{"ENTREPOT_RULE_0_TARGET", "want a * at the end of both or of neither"}}},
		{"rule without an upstream", []string{"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=dotnet/*"}, []problem{{"ENTREPOT_RULE_0_SOURCE", "does not begin with an upstream's name"}}},
		{"rule to an unknown upstream", []string{"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=nvcr.io/*"}, []problem{{"ENTREPOT_RULE_0_SOURCE", "nvcr.io is not an upstream: want one of docker.io, mcr"}}},
		{"rules that overlap", []string{"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=docker.io/x/*", "ENTREPOT_RULE_1_TARGET=a/*", "ENTREPOT_RULE_1_SOURCE=docker.io/y/*"}, []problem{{"ENTREPOT_RULE_1_TARGET", "a/* is the target of another rule, a/* => docker.io/x/*"}}},
		{"rule with half a login", []string{"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=docker.io/x/*", "ENTREPOT_RULE_0_USERNAME=me"}, []problem{{"ENTREPOT_RULE_0_USERNAME", "is set without ENTREPOT_RULE_0_PASSWORD"}}},
		{"rules with two logins", []string{
			"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=docker.io/x/*", "ENTREPOT_RULE_0_USERNAME=me", "ENTREPOT_RULE_0_PASSWORD=p",
			"ENTREPOT_RULE_1_TARGET=b/*", "ENTREPOT_RULE_1_SOURCE=docker.io/x/*", "ENTREPOT_RULE_1_USERNAME=you", "ENTREPOT_RULE_1_PASSWORD=p",
		}, []problem{{"ENTREPOT_RULE_1_USERNAME", "is an account for docker.io/x/*, and ENTREPOT_RULE_0_USERNAME is one as well"}}},
		{"rule with the login of an upstream", []string{
			"ENTREPOT_RULE_0_TARGET=a/*", "ENTREPOT_RULE_0_SOURCE=docker.io/*", "ENTREPOT_RULE_0_USERNAME=me", "ENTREPOT_RULE_0_PASSWORD=p",
			"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD=b",
		}, []problem{{"ENTREPOT_RULE_0_USERNAME", "ENTREPOT_DOCKERHUB_USERNAME is one as well"}}},
		{"policy without a pattern", []string{"ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "is not set"}}},
		{"policy of nothing", []string{"ENTREPOT_POLICY_0_MATCH=*"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "has nothing beside it: want ENTREPOT_POLICY_0_ACTION"}}},
		{"policy that denies under conditions", []string{"ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_ACTION=deny", "ENTREPOT_POLICY_0_MIN_AGE=3d"}, []problem{{"ENTREPOT_POLICY_0_ACTION", "nothing can meet the demands"}}},
		{"policy with another action", []string{"ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_ACTION=warn"}, []problem{{"ENTREPOT_POLICY_0_ACTION", `"warn" is neither allow nor deny`}}},
		{"policy with an odd age", []string{"ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_MIN_AGE=3w"}, []problem{{"ENTREPOT_POLICY_0_MIN_AGE", "is not an age"}}},
		{"policy with a start and no age", []string{"ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_MAX_SIZE=1GiB", "ENTREPOT_POLICY_0_AGE_FROM=seen"}, []problem{{"ENTREPOT_POLICY_0_AGE_FROM", "is set without ENTREPOT_POLICY_0_MIN_AGE"}}},
		{"policy with an odd platform", []string{"ENTREPOT_POLICY_0_MATCH=*", "ENTREPOT_POLICY_0_PLATFORMS=amd64"}, []problem{{"ENTREPOT_POLICY_0_PLATFORMS", `"amd64" is not a platform`}}},
		{"dry run of nothing", []string{"ENTREPOT_POLICY_DRY_RUN=true"}, []problem{{"ENTREPOT_POLICY_DRY_RUN", "there is no policy"}}},
		{"two accounts for one", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD=b", "ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_USERNAME=c", "ENTREPOT_UPSTREAM_0_PASSWORD=d"}, []problem{{"ENTREPOT_DOCKERHUB_USERNAME", "ENTREPOT_UPSTREAM_0_USERNAME as well"}}},
		{"value and file", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD=hunter2", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=/x"}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "is set, and ENTREPOT_DOCKERHUB_PASSWORD as well"}}},
		{"secret file missing", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=" + absent}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "no such file"}}},
		{"secret file missing here", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=hub.token"}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "no such file or directory (in /"}}},
		{"what is no image", []string{"ENTREPOT_WARM=foo/bar@"}, []problem{{"ENTREPOT_WARM", `"foo/bar@": digest "" has no algorithm`}}},
		{"secret file empty", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=" + empty}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "is empty"}}},
		{"secret file is a directory", []string{"ENTREPOT_DOCKERHUB_USERNAME=a", "ENTREPOT_DOCKERHUB_PASSWORD_FILE=" + t.TempDir()}, []problem{{"ENTREPOT_DOCKERHUB_PASSWORD_FILE", "is a directory"}}},

		{"gap at the start", []string{"ENTREPOT_UPSTREAM_1_NAME=a.test"}, []problem{{"ENTREPOT_UPSTREAM_1_NAME", "nothing of ENTREPOT_UPSTREAM_0_: want numbers from 0"}}},
		{"gap", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_2_NAME=b.test", "ENTREPOT_UPSTREAM_3_NAME=c.test"}, []problem{{"ENTREPOT_UPSTREAM_2_NAME", "nothing of ENTREPOT_UPSTREAM_1_"}}},
		{"no name", []string{"ENTREPOT_UPSTREAM_0_URL=https://a.test"}, []problem{{"ENTREPOT_UPSTREAM_0_NAME", "is not set, but others of ENTREPOT_UPSTREAM_0_ are"}}},
		{"name twice", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_1_NAME=A.test"}, []problem{{"ENTREPOT_UPSTREAM_1_NAME", "a.test is already ENTREPOT_UPSTREAM_0_NAME"}}},
		{"url without scheme", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=a.test:5000"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "want https://host[:port]"}}},
		{"url of another scheme", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=ftp://a.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "is not a registry's URL"}}},
		{"url with the api's path", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://a.test/x/v2/"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "ends in /v2, which is added"}}},
		{"url with dots in its path", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://a.test/x/../y"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "dotted"}}},
		{"url with query", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://a.test/?x=1"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "has a query"}}},
		{"url with password", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://u:hunter2@a.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "use _USERNAME and _PASSWORD"}}},
		{"malformed url with password", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://u:hunter2%@a.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL", "not a URL"}}},
		{"certificates for clear text", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=http://a.test", "ENTREPOT_UPSTREAM_0_CA_FILE=" + ca}, []problem{{"ENTREPOT_UPSTREAM_0_CA_FILE", "has no meaning for the http://"}}},
		{"certificates missing", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CA_FILE=" + absent}, []problem{{"ENTREPOT_UPSTREAM_0_CA_FILE", "no such file"}}},
		{"certificates that are none", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CA_FILE=" + text}, []problem{{"ENTREPOT_UPSTREAM_0_CA_FILE", "holds no certificate"}}},
		{"one bad element does not hide the next", []string{"ENTREPOT_UPSTREAM_0_NAME=a", "ENTREPOT_UPSTREAM_1_NAME=b.test", "ENTREPOT_UPSTREAM_1_PASSWORD=x"}, []problem{{"ENTREPOT_UPSTREAM_0_NAME", "neither a dot nor a port"}, {"ENTREPOT_UPSTREAM_1_PASSWORD", "without ENTREPOT_UPSTREAM_1_USERNAME"}}},

		{"gap in an inner list", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0=https://b.test", "ENTREPOT_UPSTREAM_0_URL_2=https://c.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_2", "nothing of ENTREPOT_UPSTREAM_0_URL_1_"}}},
		{"gap at the start of an inner list", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX=x"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX", "nothing of ENTREPOT_UPSTREAM_0_CREDENTIAL_0_"}}},
		{"an inner list of nobody", []string{"ENTREPOT_UPSTREAM_0_URL_0=https://b.test"}, []problem{{"ENTREPOT_UPSTREAM_0_NAME", "is not set"}}},
		{"misspelt in an inner list", []string{"ENTREPOT_UPSTREAM_0_CREDENTIAL_3_PREFX=x"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_3_PREFX", "did you mean ENTREPOT_UPSTREAM_0_CREDENTIAL_3_PREFIX?"}}},
		{"a number where none is", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0=https://b.test", "ENTREPOT_UPSTREAM_0_URL_0_ITSELF=https://b.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0_ITSELF", "no such setting"}}},
		{"a mirror without an address", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_URL_0_PASSWORD=hunter2"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0", "is not set, but others of ENTREPOT_UPSTREAM_0_URL_0_ are"}}},
		{"an empty mirror", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0="}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0", "is empty"}}},
		{"a mirror that is no URL", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0=b.test"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0", "is not a registry's URL"}}},
		{"a mirror twice", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://b.test", "ENTREPOT_UPSTREAM_0_URL_0=https://B.test/"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0", "https://b.test is already ENTREPOT_UPSTREAM_0_URL"}}},
		{"a mirror's account without password", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0=https://b.test", "ENTREPOT_UPSTREAM_0_URL_0_USERNAME=x"}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0_USERNAME", "without ENTREPOT_UPSTREAM_0_URL_0_PASSWORD"}}},
		{"a mirror's certificates for clear text", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL_0=http://b.test", "ENTREPOT_UPSTREAM_0_URL_0_CA_FILE=" + ca}, []problem{{"ENTREPOT_UPSTREAM_0_URL_0_CA_FILE", "has no meaning for the http:// of ENTREPOT_UPSTREAM_0_URL_0"}}},
		{"an account for nothing", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX", "want the path that the account is for"}}},
		{"no account", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=x"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME", "want the account for it"}}},
		{"a prefix with the registry", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=https://a.test/x"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX", "is not the start of a repository's path"}}},
		{"a prefix with the upstream", []string{"ENTREPOT_UPSTREAM_0_NAME=docker.io", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=docker.io/a", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX", "docker.io/a begins with the name of docker.io"}}},
		{"a prefix with the upstream's host", []string{"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=https://b.test/x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=b.test/y", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2"}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX", "want the rest of it"}}},
		{"a prefix twice", []string{
			"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2",
			"ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX=x/", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_USERNAME=y", "ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PASSWORD=hunter2",
		}, []problem{{"ENTREPOT_UPSTREAM_0_CREDENTIAL_1_PREFIX", "x is already ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX"}}},

		{"a TTL of nothing", []string{"ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "want a pattern for the tags"}}},
		{"a pattern without TTL", []string{"ENTREPOT_TAG_TTL_0_MATCH=*"}, []problem{{"ENTREPOT_TAG_TTL_0_TTL", "want how long those tags are believed"}}},
		{"a TTL that is none", []string{"ENTREPOT_TAG_TTL_0_MATCH=*", "ENTREPOT_TAG_TTL_0_TTL=always"}, []problem{{"ENTREPOT_TAG_TTL_0_TTL", "such as 90s, 5m, 24h or 7d, or never"}}},
		{"a pattern without upstream", []string{"ENTREPOT_TAG_TTL_0_MATCH=alpine:*", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "does not start with an upstream"}}},
		{"a pattern without tag", []string{"ENTREPOT_TAG_TTL_0_MATCH=docker.io/library/alpine", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "has no tag"}}},
		{"a pattern without tag below a *", []string{"ENTREPOT_POLICY_0_MATCH=docker.io/evil*/miner", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "no * at its end"}}},
		{"a pattern with a port and no tag", []string{"ENTREPOT_POLICY_0_MATCH=localhost:5005/miner", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "has no tag"}}},
		{"a pattern without library", []string{"ENTREPOT_POLICY_0_MATCH=docker.io/alpine:3*", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "want docker.io/library/alpine:3*"}}},
		{"a pattern with Docker Hub's other name", []string{"ENTREPOT_POLICY_0_MATCH=index.docker.io/evil/*", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "want docker.io/evil/*"}}},
		{"a pattern in capitals", []string{"ENTREPOT_POLICY_0_MATCH=GHCR.io/*", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "want ghcr.io/*"}}},
		{"a pattern with a bad range", []string{"ENTREPOT_TAG_TTL_0_MATCH=*:[0-9", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "a bracket that is no range"}}},
		{"a pattern with a space", []string{"ENTREPOT_TAG_TTL_0_MATCH=*:1 *:2", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "holds a space"}}},
		{"a pattern with a digest", []string{"ENTREPOT_TAG_TTL_0_MATCH=docker.io/library/alpine@sha256:*", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "compared with tags alone"}}},
		{"a policy on a digest", []string{"ENTREPOT_POLICY_0_MATCH=docker.io/evil/miner@sha256:0*", "ENTREPOT_POLICY_0_ACTION=deny"}, []problem{{"ENTREPOT_POLICY_0_MATCH", "compared with tags alone"}}},
		{"a pattern with braces", []string{"ENTREPOT_TAG_TTL_0_MATCH=*:{a,b}", "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "but a setting for each"}}},
		{"a pattern that escapes", []string{`ENTREPOT_TAG_TTL_0_MATCH=*:\`, "ENTREPOT_TAG_TTL_0_TTL=1m"}, []problem{{"ENTREPOT_TAG_TTL_0_MATCH", "a character that is in no name"}}},
		{"a platform that is none", []string{"ENTREPOT_WARM_PLATFORMS=linux/potato"}, []problem{{"ENTREPOT_WARM_PLATFORMS", "want one of amd64, arm64, "}}},
		{"certificate without key", []string{"ENTREPOT_TLS_CERT_FILE=" + chain}, []problem{{"ENTREPOT_TLS_CERT_FILE", "without ENTREPOT_TLS_KEY_FILE"}}},
		{"key without certificate", []string{"ENTREPOT_TLS_KEY_FILE=" + key}, []problem{{"ENTREPOT_TLS_KEY_FILE", "without ENTREPOT_TLS_CERT_FILE"}}},
		{"certificate and key the wrong way round", []string{"ENTREPOT_TLS_CERT_FILE=" + key, "ENTREPOT_TLS_KEY_FILE=" + chain}, []problem{{"ENTREPOT_TLS_CERT_FILE", "want PEM"}}},
		{"PEM and PKCS#12", []string{"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key, "ENTREPOT_TLS_PFX_FILE=" + text}, []problem{{"ENTREPOT_TLS_PFX_FILE", "want one of them"}}},
		{"PKCS#12 that is none", []string{"ENTREPOT_TLS_PFX_FILE=" + text}, []problem{{"ENTREPOT_TLS_PFX_FILE", "openssl pkcs12 -export"}}},
		{"password of no file", []string{"ENTREPOT_TLS_PFX_PASSWORD=hunter2"}, []problem{{"ENTREPOT_TLS_PFX_PASSWORD", "without ENTREPOT_TLS_PFX_FILE"}}},
		{"clients' authorities without TLS", []string{"ENTREPOT_TLS_CLIENT_CA_FILE=" + ca}, []problem{{"ENTREPOT_TLS_CLIENT_CA_FILE", "no meaning without TLS"}}},
		{"clients' certificates of nobody", []string{"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key, "ENTREPOT_TLS_CLIENT_AUTH=required"}, []problem{{"ENTREPOT_TLS_CLIENT_AUTH", "ENTREPOT_TLS_CLIENT_CA_FILE too"}}},
		{"clients' certificates sometimes", []string{"ENTREPOT_TLS_CLIENT_AUTH=maybe"}, []problem{{"ENTREPOT_TLS_CLIENT_AUTH", "neither optional nor required"}}},
		{"plain beside plain", []string{"ENTREPOT_PLAIN_LISTEN=:5002"}, []problem{{"ENTREPOT_PLAIN_LISTEN", "speaks TLS on ENTREPOT_LISTEN, which this one does not"}}},
		{"users in clear", []string{"ENTREPOT_USERS_FILE=" + writeFile(t, "alice:hunter2")}, []problem{{"ENTREPOT_USERS_FILE", "htpasswd -B"}}},
		{"no users", []string{"ENTREPOT_USERS_FILE=" + absent}, []problem{{"ENTREPOT_USERS_FILE", "no such file"}}},
		{"rights that are none", []string{"ENTREPOT_ACCESS_FILE=" + text}, []problem{{"ENTREPOT_ACCESS_FILE", "not an access file"}}},
		{"rights for an upstream that is none", []string{"ENTREPOT_ACCESS_FILE=" + writeFile(t, "rules: [{who: [alice], repositories: [a.test/x]}]")}, []problem{{"ENTREPOT_ACCESS_FILE", "a.test is not an upstream"}}},
		{"short key", []string{"ENTREPOT_ACCESS_FILE=" + rights, "ENTREPOT_TOKEN_KEY=hunter2"}, []problem{{"ENTREPOT_TOKEN_KEY", "is too short"}}},
		{"key of no tokens", []string{"ENTREPOT_TOKEN_KEY=0123456789abcdef0123456789abcdef"}, []problem{{"ENTREPOT_TOKEN_KEY", "no meaning without ENTREPOT_ACCESS_FILE"}}},
		{"own URL with a path", []string{"ENTREPOT_URL=https://cache.test/x"}, []problem{{"ENTREPOT_URL", "has a path"}}},
		{"ACME and a file", []string{"ENTREPOT_TLS_ACME_DOMAINS=cache.test", "ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key}, []problem{{"ENTREPOT_TLS_ACME_DOMAINS", "want one of them"}}},
		{"ACME for an address", []string{"ENTREPOT_TLS_ACME_DOMAINS=192.0.2.1"}, []problem{{"ENTREPOT_TLS_ACME_DOMAINS", "no name that an authority knows"}}},
		{"ACME for a port", []string{"ENTREPOT_TLS_ACME_DOMAINS=cache.test:5000"}, []problem{{"ENTREPOT_TLS_ACME_DOMAINS", "without a port"}}},
		{"ACME for nothing", []string{"ENTREPOT_TLS_ACME_EMAIL=me@cache.test"}, []problem{{"ENTREPOT_TLS_ACME_DOMAINS", "is not set, but others"}}},
		{"ACME without TLS", []string{"ENTREPOT_TLS_ACME_DOMAINS=cache.test", "ENTREPOT_TLS_ACME_DIRECTORY=http://x"}, []problem{{"ENTREPOT_TLS_ACME_DIRECTORY", "https://"}}},
		{"mail to nobody", []string{"ENTREPOT_TLS_ACME_DOMAINS=cache.test", "ENTREPOT_TLS_ACME_EMAIL=me"}, []problem{{"ENTREPOT_TLS_ACME_EMAIL", "name@host"}}},
		{"ACME with authorities that are none", []string{"ENTREPOT_TLS_ACME_DOMAINS=cache.test", "ENTREPOT_TLS_ACME_CA_FILE=" + text}, []problem{{"ENTREPOT_TLS_ACME_DOMAINS", "holds no certificate"}}},
		{"empty certificate", []string{"ENTREPOT_TLS_CERT_FILE=" + writeFile(t, "")}, []problem{{"ENTREPOT_TLS_CERT_FILE", "is empty"}}},

		{"proxy with password", []string{"HTTPS_PROXY=ftp://u:hunter2@proxy:3128"}, []problem{{"HTTPS_PROXY", "this is not a proxy: want http://"}}},
		{"proxy that says nothing", []string{"http_proxy=http://"}, []problem{{"HTTP_PROXY", "this is not a proxy"}}},

		{"all at once", []string{"ENTREPOT_DATE=x", "ENTREPOT_LISTEN=5000", "ENTREPOT_MEMORY=", "ENTREPOT_UPSTREAM_3_NAME=x.test", "ENTREPOT_DOCKERHUB_PASSWORD=hunter2"}, []problem{
			{"ENTREPOT_DATE", "did you mean ENTREPOT_DATA?"}, {"ENTREPOT_DOCKERHUB_PASSWORD", "without"}, {"ENTREPOT_LISTEN", "not an address"}, {"ENTREPOT_MEMORY", "is empty"}, {"ENTREPOT_UPSTREAM_3_NAME", "without a gap"},
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := loadConfig(environ(row.env...))
			got, ok := errors.AsType[problems](err)
			if !ok {
				t.Fatalf("error is %v, want problems", err)
			}
			if len(got) != len(row.want) {
				t.Fatalf("got %d problems, want %d:\n%v", len(got), len(row.want), err)
			}
			for i, want := range row.want {
				if got[i].name != want.name || !strings.Contains(got[i].text, want.text) {
					t.Errorf("problem %d is\n%s: %s\nwant\n%s: ...%s...", i, got[i].name, got[i].text, want.name, want.text)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

func TestVariablesOfKubernetesAreIgnored(t *testing.T) {
	c := mustLoad(t, "ENTREPOT_SERVICE_HOST=10.0.0.1", "ENTREPOT_SERVICE_PORT=5000", "ENTREPOT_SERVICE_PORT_REGISTRY=5000",
		"ENTREPOT_PORT=tcp://10.0.0.1:5000", "ENTREPOT_PORT_5000_TCP=tcp://10.0.0.1:5000", "ENTREPOT_PORT_5000_TCP_ADDR=10.0.0.1", "ENTREPOT_PORT_5000_TCP_PORT=")
	if c.Listen != ":5000" {
		t.Errorf("ENTREPOT_LISTEN is %s", c.Listen)
	}
	for _, s := range settings() {
		if strings.HasPrefix(s.name, ourPrefix) && !isOurs(s.name) {
			t.Errorf("%s can be set by Kubernetes", s.name)
		}
	}
}

func TestSettingsAreDocumentedAndOfOwnTypes(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings() {
		if s.doc == "" || strings.HasSuffix(s.doc, ".") || strings.Contains(s.doc, "|") {
			t.Errorf("%s: doc %q does not fit a table", s.name, s.doc)
		}
		if seen[s.name] {
			t.Errorf("%s is declared twice", s.name)
		}
		seen[s.name] = true
	}
	eachValue(mustLoad(t), func(name string, s setting, v any) {
		if s.preset != "" && showValue(v) != s.preset {
			t.Errorf("%s: default %s is printed as %s", name, s.preset, showValue(v))
		}
		if kind := reflect.TypeOf(v).Elem(); kind.PkgPath() != reflect.TypeFor[Config]().PkgPath() && name != "NO_PROXY" {
			t.Errorf("%s: type %s checks nothing", name, kind)
		}
	})
}

func TestSecretsAreNeverPrinted(t *testing.T) {
	pair := ocitest.NewCA().Certificate()
	content, err := pkcs12.Modern.Encode(pair.PrivateKey, pair.Leaf, nil, "hunter2")
	if err != nil {
		t.Fatal(err)
	}
	archive := writeFile(t, string(content))
	c := mustLoad(t, "ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=hunter2", "ENTREPOT_ADMIN_TOKEN=hunter2hunter2hunter2",
		"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD_FILE="+writeFile(t, "hunter2\n"),
		"ENTREPOT_UPSTREAM_0_URL_0=https://b.test", "ENTREPOT_UPSTREAM_0_URL_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_URL_0_PASSWORD=hunter2",
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2",
		"ENTREPOT_TOKEN_KEY="+strings.Repeat("hunter2", 5), "ENTREPOT_ACCESS_FILE="+writeFile(t, "rules: []"), "ENTREPOT_TLS_PFX_FILE="+archive, "ENTREPOT_TLS_PFX_PASSWORD=hunter2",
		"HTTPS_PROXY=http://user:hunter2@proxy.test:3128", "http_proxy=user:hunter2@proxy.test:3128")
	var out bytes.Buffer
	if err := printConfig(&out, c); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(c.DockerHubPassword)
	if err != nil {
		t.Fatal(err)
	}
	hidden := struct{ password Secret }{c.DockerHubPassword}
	out.Write(text)
	for _, v := range []any{c.DockerHubPassword, &c.DockerHubPassword, hidden, c.UpstreamSettings(), c.Upstream} {
		fmt.Fprintf(&out, "%v %+v %#v %s %q %d %x\n", v, v, v, v, v, v, v)
	}
	if strings.Contains(out.String(), "hunter2") || strings.Contains(out.String(), "68756e74657232") {
		t.Errorf("a secret was printed:\n%s", &out)
	}
	if got := strings.Count(out.String(), "user:xxxxx@proxy.test:3128"); got != 2 {
		t.Errorf("%d proxies shown, want 2:\n%s", got, &out)
	}
}

func TestSecretFileIsReadAgain(t *testing.T) {
	path := writeFile(t, "one\n\n")
	s, err := newSecretFile(path)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string, wantErr bool) {
		t.Helper()
		if got, err := s.Value(); got != want || (err != nil) != wantErr {
			t.Errorf("Value() = %q, %v, want %q (error %v)", got, err, want, wantErr)
		}
	}
	replace := func(content string) {
		t.Helper()
		next := path + ".new"
		if err := os.WriteFile(next, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, path); err != nil {
			t.Fatal(err)
		}
	}
	expect("one\n", false) // only one newline is cut
	replace("two\r\n")
	expect("two", false)
	replace("")
	expect("two", true)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("two", true)
	replace("three")
	expect("three", false)
}

func TestProxyComesFromTheEnvironment(t *testing.T) {
	for _, row := range []struct{ env, url, want string }{
		{"HTTPS_PROXY=http://proxy.test:3128", "https://ghcr.io/v2/", "http://proxy.test:3128"},
		{"HTTPS_PROXY=http://proxy.test:3128", "http://ghcr.io/v2/", ""},
		{"HTTPS_PROXY=http://proxy.test:3128 NO_PROXY=.io", "https://ghcr.io/v2/", ""},
		{"HTTPS_PROXY=http://proxy.test:3128 https_proxy=http://lower.test:1", "https://ghcr.io/v2/", "http://lower.test:1"},
		{"HTTPS_PROXY=http://proxy.test:3128 https_proxy=", "https://ghcr.io/v2/", "http://proxy.test:3128"},
		{"http_proxy=proxy.test:3128", "http://ghcr.io/v2/", "http://proxy.test:3128"},
		{"HTTPS_PROXY=", "https://ghcr.io/v2/", ""},
		{"", "https://ghcr.io/v2/", ""},
	} {
		c := mustLoad(t, strings.Fields(row.env)...)
		r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, row.url, nil)
		u, err := c.Proxy()(r)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if u != nil {
			got = u.String()
		}
		if got != row.want {
			t.Errorf("%s: %s goes through %q, want %q", row.env, row.url, got, row.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	c := mustLoad(t, "ENTREPOT_ADMIN_LISTEN=:5001", "DOCKER_CONFIG=/nonexistent",
		"ENTREPOT_UPSTREAM_0_NAME=a.test", "ENTREPOT_UPSTREAM_0_URL=http://a.test", "ENTREPOT_UPSTREAM_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_PASSWORD=hunter2",
		"ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PREFIX=x", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_USERNAME=other", "ENTREPOT_UPSTREAM_0_CREDENTIAL_0_PASSWORD=hunter2",
		"ENTREPOT_UPSTREAM_0_URL_0=http://b.test", "ENTREPOT_UPSTREAM_0_URL_0_USERNAME=me", "ENTREPOT_UPSTREAM_0_URL_0_PASSWORD=hunter2",
		"ENTREPOT_POLICY_0_MATCH=dcoker.io/*", "ENTREPOT_POLICY_0_ACTION=deny", "ENTREPOT_POLICY_1_MATCH=a.test/*", "ENTREPOT_POLICY_1_ACTION=deny",
		"ENTREPOT_TAG_TTL_0_MATCH=foo.io/*:latest", "ENTREPOT_TAG_TTL_0_TTL=1m", "ENTREPOT_TAG_TTL_1_MATCH=?.test/*:latest", "ENTREPOT_TAG_TTL_1_TTL=1m", "ENTREPOT_TAG_TTL_2_MATCH=*/x:latest", "ENTREPOT_TAG_TTL_2_TTL=1m")
	got := strings.Join(c.Warnings(), "\n")
	for _, want := range []string{
		"ENTREPOT_ADMIN_LISTEN=:5001", "until ENTREPOT_ADMIN_TOKEN is set", "in clear: its URL is http://a.test", "in clear: its URL is http://b.test",
		"everybody who reaches :5000 can pull from a.test what the account me or other may read", "DOCKER_CONFIG",
		"ENTREPOT_POLICY_0_MATCH=dcoker.io/* is about dcoker.io", "ENTREPOT_TAG_TTL_0_MATCH=foo.io/*:latest is about foo.io, which is not an upstream: it matches nothing; the upstreams are docker.io, ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no warning with %q in:\n%s", want, got)
		}
	}
	for _, not := range []string{"ENTREPOT_POLICY_1", "ENTREPOT_TAG_TTL_1", "ENTREPOT_TAG_TTL_2"} {
		if strings.Contains(got, not) {
			t.Errorf("a pattern for an upstream is warned of:\n%s", got)
		}
	}
}

// A claim's pattern that lets in more than it spells is warned of, by its place.
func TestOpenEndedClaimsAreWarnedOf(t *testing.T) {
	file := func(claim string) string {
		return writeFile(t, "oidc:\n  - issuer: https://ci.example\n    audience: us\n    identities: [{user: ci, claims: {sub: '"+claim+"'}}]\n")
	}
	for claim, want := range map[string]bool{"repo:acme*": true, "repo:acme/*": false} {
		c := mustLoad(t, "ENTREPOT_LISTEN=127.0.0.1:5000", "ENTREPOT_ACCESS_FILE="+file(claim))
		got := strings.Join(c.Warnings(), "\n")
		if strings.Contains(got, `oidc: number 1: identity 1: claim sub: "`+claim+`"`) != want {
			t.Errorf("%s: %q", claim, got)
		}
	}
}

// What an account may read is everybody's at each address that asks for nothing.
func TestOpenAddressesAreWarnedOf(t *testing.T) {
	ca := ocitest.NewCA()
	chain, key := pairFiles(t, t.TempDir(), "tls", ca.Certificate())
	secure := []string{"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key}
	certified := append(slices.Clone(secure), "ENTREPOT_TLS_CLIENT_CA_FILE="+writeFile(t, string(ca.PEM)), "ENTREPOT_TLS_CLIENT_AUTH=required")
	account := []string{"ENTREPOT_DOCKERHUB_USERNAME=me", "ENTREPOT_DOCKERHUB_PASSWORD=hunter2"}
	rights := func(who, repositories string) []string {
		return []string{"ENTREPOT_ACCESS_FILE=" + writeFile(t, fmt.Sprintf("rules: [{who: %s, repositories: [%q], actions: [content/read]}]\n", who, repositories))}
	}
	for name, row := range map[string]struct {
		env  []string
		want string // of the addresses
	}{
		"the registry":                    {nil, ":5000"},
		"this machine":                    {[]string{"ENTREPOT_LISTEN=127.0.0.1:5000"}, ""},
		"beside TLS":                      {append(secure, "ENTREPOT_PLAIN_LISTEN=:5002"), ":5000 or :5002"},
		"TLS here, plain everywhere":      {append(secure, "ENTREPOT_LISTEN=127.0.0.1:5000", "ENTREPOT_PLAIN_LISTEN=:5002"), ":5002"},
		"certificates":                    {certified, ""},
		"a way round certificates":        {append(certified, "ENTREPOT_PLAIN_LISTEN=:5002"), ":5002"},
		"one round certificates for here": {append(certified, "ENTREPOT_PLAIN_LISTEN=127.0.0.1:5002"), ""},
		"rights":                          {append(secure, "ENTREPOT_PLAIN_LISTEN=:5002", "ENTREPOT_ACCESS_FILE="+writeFile(t, "rules: []\n")), ""},
		"users":                           {[]string{"ENTREPOT_USERS_FILE=" + writeFile(t, string(usersFile(t, map[string]string{"ann": "hunter2"})))}, ""},
		"rights for everybody":            {rights("[anonymous]", "docker.io/library/**"), ":5000, as far as ENTREPOT_ACCESS_FILE lets them: docker.io/library/**"},
		"rights for everybody, here":      {append(rights("[anonymous]", "**"), "ENTREPOT_LISTEN=127.0.0.1:5000"), ""},
		"rights for everybody, elsewhere": {rights("[anonymous]", "ghcr.io/**"), ""},
		"rights for users":                {rights("[authenticated]", "**"), ""},
	} {
		got := ""
		for _, warning := range mustLoad(t, slices.Concat(account, row.env)...).Warnings() {
			if open, allowed, is := strings.Cut(warning, " can pull from docker.io what the account me may read"); is {
				got = strings.TrimPrefix(open, "everybody who reaches ") + allowed
			}
		}
		if got != row.want {
			t.Errorf("%s: warned of %q, want %q", name, got, row.want)
		}
	}
}

func TestPasswordsInClearAreWarnedOf(t *testing.T) {
	rights := "ENTREPOT_ACCESS_FILE=" + writeFile(t, "rules: []\n")
	chain, key := pairFiles(t, t.TempDir(), "tls", ocitest.NewCA().Certificate())
	secure := []string{"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key}
	for name, row := range map[string]struct {
		env  []string
		want bool
	}{
		"nobody":            {nil, false},
		"in clear":          {[]string{rights}, true},
		"on this machine":   {[]string{rights, "ENTREPOT_LISTEN=127.0.0.1:5000"}, false},
		"over TLS":          {append(secure, rights), false},
		"beside TLS":        {append(secure, rights, "ENTREPOT_PLAIN_LISTEN=:5002"), true},
		"for this machine":  {append(secure, rights, "ENTREPOT_PLAIN_LISTEN=127.0.0.1:5002"), false},
		"behind something":  {[]string{rights, "ENTREPOT_URL=https://cache.test"}, false},
		"behind plain HTTP": {[]string{rights, "ENTREPOT_URL=http://cache.test"}, true},
	} {
		got := strings.Contains(strings.Join(mustLoad(t, row.env...).Warnings(), "\n"), "travel in clear")
		if got != row.want {
			t.Errorf("%s: warned %t, want %t", name, got, row.want)
		}
	}
}

// The address without TLS is a way round certificates that are required.
func TestAPlainWayRoundCertificatesIsWarnedOf(t *testing.T) {
	ca := ocitest.NewCA()
	chain, key := pairFiles(t, t.TempDir(), "tls", ca.Certificate())
	base := []string{"ENTREPOT_TLS_CERT_FILE=" + chain, "ENTREPOT_TLS_KEY_FILE=" + key, "ENTREPOT_TLS_CLIENT_CA_FILE=" + writeFile(t, string(ca.PEM)), "ENTREPOT_TLS_CLIENT_AUTH=required"}
	for name, row := range map[string]struct {
		env  []string
		want bool
	}{
		"none":             {nil, false},
		"for everybody":    {[]string{"ENTREPOT_PLAIN_LISTEN=:5002"}, true},
		"for this machine": {[]string{"ENTREPOT_PLAIN_LISTEN=127.0.0.1:5002"}, false},
		"with rights":      {[]string{"ENTREPOT_PLAIN_LISTEN=:5002", "ENTREPOT_ACCESS_FILE=" + writeFile(t, "rules: []\n")}, false},
	} {
		got := strings.Contains(strings.Join(mustLoad(t, slices.Concat(base, row.env)...).Warnings(), "\n"), "asks nobody for a certificate")
		if got != row.want {
			t.Errorf("%s: warned %t, want %t", name, got, row.want)
		}
	}
}

func TestSizeText(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "1": 1, "512B": 512, "1KB": 1000, "1KiB": 1024, "200GiB": 200 << 30, "200gb": 200e9, "1.5TiB": 3 << 39, "0.5B": 0, "8191PiB": 8191 << 50,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", " ", "GiB", "1 GiB", "1G", "1Gi", "1e9", "0x10", "1_000", "1.", ".5GiB", "1.2.3", "+1", "٣MiB", "8192PiB", "1/2", strings.Repeat("9", 1<<20)} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d, want an error", text, got)
		} else if len(err.Error()) > 400 {
			t.Errorf("parseSize of %d bytes: the error has %d", len(text), len(err.Error()))
		}
	}
	for size, want := range map[Size]string{0: "0", 1: "1", 1000: "1KB", 1024: "1KiB", 200 << 30: "200GiB", 200e9: "200GB", 1001: "1001", 64 << 20: "64MiB"} {
		if got := size.String(); got != want {
			t.Errorf("%d bytes print as %s, want %s", int64(size), got, want)
		}
	}
}

func TestHeadroomOfADisk(t *testing.T) {
	for text, want := range map[string]int64{"0": 0, "0%": 0, "5%": 50e9, "0.0001%": 1e6, "99.9%": 999e9, "10GB": 10e9} {
		h, err := parseHeadroom(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.Of(1e12); got != want {
			t.Errorf("%s of 1 TB is %d, want %d", text, got, want)
		}
	}
	if h, _ := parseHeadroom("99.9999%"); h.Of(1<<63-1) < 0 {
		t.Error("a share of the largest disk overflows")
	}
}

func TestNearest(t *testing.T) {
	all := settings()
	for typed, want := range map[string]string{
		"ENTREPOT_LISTEN_ADDRESS":             "",
		"ENTREPOT_CACHESIZE":                  "ENTREPOT_CACHE_SIZE",
		"ENTREPOT_UPSTREAM":                   "ENTREPOT_UPSTREAMS",
		"ENTREPOT_DOCKERHUB_USER":             "ENTREPOT_DOCKERHUB_USERNAME",
		"ENTREPOT_UPSTREAM_3_CAFILE":          "ENTREPOT_UPSTREAM_3_CA_FILE",
		"ENTREPOT_DEFAULT_UPSTRAEM":           "ENTREPOT_DEFAULT_UPSTREAM",
		"ENTREPOT_UPSTREAM_3_URL_12_USERNAM":  "ENTREPOT_UPSTREAM_3_URL_12_USERNAME",
		"ENTREPOT_UPSTREAM_3_CREDENTIAL_USER": "ENTREPOT_UPSTREAM_3_CREDENTIAL_<m>_USERNAME",
		"ENTREPOT_" + strings.Repeat("X", 99): "",
	} {
		if got := nearest(all, typed); got != want {
			t.Errorf("nearest(%s) = %q, want %q", typed, got, want)
		}
	}
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"0", "200GiB", "1.5TB", "64mib", "9223372036854775807", "1e9", ".", "1..2", "99999999PiB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		size, err := parseSize(s)
		if err != nil {
			return
		}
		if size < 0 {
			t.Fatalf("parseSize(%q) = %d", s, size)
		}
		if again, err := parseSize(size.String()); err != nil || again != size {
			t.Fatalf("%q is %d, printed %s, read back %d, %v", s, size, size, again, err)
		}
	})
}

func FuzzHeadroom(f *testing.F) {
	for _, s := range []string{"5%", "0%", "99.9999%", "100%", "20GiB", "%", "-1%", "1e1%", "0.00001%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		h, err := parseHeadroom(s)
		if err != nil {
			return
		}
		if share := h.Of(1e12); h.bytes == 0 && (share < 0 || share >= 1e12) {
			t.Fatalf("%q of 1 TB is %d", s, share)
		}
		if again, err := parseHeadroom(h.String()); err != nil || again != h {
			t.Fatalf("%q is %+v, printed %s, read back %+v, %v", s, h, h, again, err)
		}
	})
}

// Whatever a variable is called, it is a setting, somebody else's, or one
// problem that does not tell its value.
func FuzzVariableName(f *testing.F) {
	for _, s := range settings() {
		f.Add(numbered(s.name, func(int) string { return "0" }))
		f.Add(s.name)
	}
	f.Add("ENTREPOT_UPSTREAM_18446744073709551616_NAME")
	f.Add("ENTREPOT_UPSTREAM__NAME")
	f.Add("ENTREPOT_PORT_1\n")
	all := settings()
	f.Fuzz(func(t *testing.T, name string) {
		var found problems
		const value = "zzsecretzz"
		vars := settingVars(map[string]string{name: value}, &found)
		_, _, _, known := findSetting(all, name)
		switch {
		case !known && !isOurs(name) && len(found)+len(vars) > 0:
			t.Fatalf("%q is not ours, but got %v %v", name, slices.Collect(maps.Keys(vars)), found)
		case !known && isOurs(name) && len(found) != 1:
			t.Fatalf("%q: problems %v, want one", name, found)
		case known && len(vars) != 1:
			t.Fatalf("%q: variables %v, want one", name, vars)
		}
		if !known && strings.Contains(found.Error(), value) {
			t.Fatalf("%q: %v", name, found)
		}
	})
}

func TestTimesAreGivenInDaysToo(t *testing.T) {
	c := mustLoad(t, "ENTREPOT_TAG_TTL=7d", "ENTREPOT_WARM_EVERY=1d")
	if c.TagTTL.Duration() != 7*24*time.Hour || time.Duration(c.WarmEvery) != 24*time.Hour {
		t.Errorf("got %s and %s", c.TagTTL, c.WarmEvery)
	}
}

// A variable's name and its default are not folded.
func TestHelpFitsTheTerminal(t *testing.T) {
	texts := [][]string{nil}
	for _, c := range commands() {
		texts = append(texts, []string{c.name})
	}
	for _, args := range texts {
		var out strings.Builder
		if err := help(t.Context(), invocation{args: args, stdout: &out}); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out.String()) {
			isVariable := slices.Contains(args, "config") && strings.HasPrefix(line, "  ENTREPOT_")
			if utf8.RuneCountInString(line) > helpWidth+1 && !isVariable {
				t.Errorf("help %v is wider than %d: %s", args, helpWidth, line)
			}
		}
	}
}

func TestHelpTellsEverySetting(t *testing.T) {
	var out strings.Builder
	if err := printSettings(&out); err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(out.String()), " ")
	for _, s := range settings() {
		if !strings.Contains(words, strings.Join(s.names(), ", ")) || !strings.Contains(words, strings.Join(strings.Fields(s.meaning()), " ")) {
			t.Errorf("nothing of %s", s.name)
		}
	}
}
