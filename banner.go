package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"entrepot/certs"
	"github.com/rs/zerolog"
)

// welcome is what a person who started the server wants to know.
type welcome struct {
	version   string
	registry  net.Addr
	plain     net.Addr // nil: not listening
	secure    bool     // the registry speaks TLS
	names     []string // that its certificate is for
	admin     net.Addr // nil: not listening
	metrics   net.Addr // likewise
	upstreams []string
	byDefault string // the upstream of names without one
	mirror    bool   // Docker gets something from us as its mirror
	login     bool   // clients have to say who they are
	reached   string // the URL that a setting gives; empty: what listens tells
	data      string // absolute, where that could be found out
	capacity  Size
	offline   bool
}

func newWelcome(c *Config, version string, l lines, shown *certs.Keeper) welcome {
	w := welcome{
		version: version, registry: l.registry.Addr(), upstreams: c.upstreamNames(), byDefault: string(c.DefaultUpstream),
		mirror: c.dockerMirrorTrouble() == "", login: c.hasAccess(), reached: string(c.URL),
		data: c.dataPath(), capacity: c.CacheSize, offline: bool(c.Offline),
	}
	if shown != nil {
		w.secure, w.names = true, shown.Names()
	}
	if l.plain != nil {
		w.plain = l.plain.Addr()
	}
	if l.admin != nil {
		w.admin = l.admin.Addr()
	}
	if l.metrics != nil {
		w.metrics = l.metrics.Addr()
	}
	return w
}

// log says it in one line.
func (w welcome) log(logger zerolog.Logger) {
	e := logger.Info().Str("version", w.version).Stringer("listen", w.registry).Bool("tls", w.secure)
	if w.plain != nil {
		e.Stringer("plain_listen", w.plain)
	}
	if w.admin != nil {
		e.Stringer("admin_listen", w.admin)
	}
	if w.metrics != nil {
		e.Stringer("metrics_listen", w.metrics)
	}
	e.Strs("upstreams", w.upstreams).Str("default_upstream", w.byDefault).
		Str("data", w.data).Stringer("cache_size", w.capacity).Bool("offline", w.offline)
	if hints := w.hints(); len(hints) > 0 {
		e.Str("daemon_json", hints[len(hints)-1].line) // the one for other machines, if they can get here
	}
	if w.login {
		e.Str("login", w.clientCommand())
	}
	e.Msg("serving")
}

// print says it to a person.
func (w welcome) print(out io.Writer) {
	var b strings.Builder
	fmt.Fprintf(&b, "Entrepôt %s serves %s and keeps it in %s", w.version, strings.Join(w.upstreams, ", "), w.data)
	if w.capacity > 0 {
		fmt.Fprintf(&b, ", at most %s", w.capacity)
	}
	b.WriteString(".\n")
	if w.offline {
		b.WriteString("It is offline: only what is held is served.\n")
	}
	fmt.Fprintf(&b, "\n  registry  %s\n", place(w.scheme(), w.registry, "/v2/"))
	if w.plain != nil {
		fmt.Fprintf(&b, "            %s\n", place("http", w.plain, "/v2/"))
	}
	if w.admin != nil {
		fmt.Fprintf(&b, "  admin     %s\n", place("http", w.admin, "/metrics, /readyz, /debug/pprof/"))
	}
	if w.metrics != nil {
		fmt.Fprintf(&b, "  metrics   %s\n", place("http", w.metrics, "/metrics"))
	}
	for _, hint := range w.hints() {
		fmt.Fprintf(&b, "\n%s\n  %s\n", hint.what, hint.line)
	}
	if w.login {
		fmt.Fprintf(&b, "\nClients have to log in. With the settings of this server, how (for docker, containerd, podman and others) says:\n  %s\n", w.clientCommand())
	}
	b.WriteString("\n")
	_, _ = io.WriteString(out, b.String())
}

// clientCommand prints what makes a client use this server, and how it logs in.
func (w welcome) clientCommand() string {
	name := "docker"
	if !w.mirror {
		name = "containerd" // Docker would get nothing without being told by name
	}
	at := w.reached
	if at == "" {
		host, port, _ := net.SplitHostPort(w.registry.String())
		switch ip := net.ParseIP(host); {
		case w.secure:
			host = certifiedName(w.names, ip)
		case ip.IsLoopback():
			host = "localhost"
		default:
			host = hostName(ip)
		}
		at = w.scheme() + "://" + net.JoinHostPort(host, port)
	}
	return "entrepot client --address " + at + " " + name
}

// place is where to point a browser or a client at.
func place(scheme string, a net.Addr, path string) string {
	host, port, _ := net.SplitHostPort(a.String())
	if ip := net.ParseIP(host); ip.IsUnspecified() {
		return scheme + "://" + net.JoinHostPort("localhost", port) + path + ", on every interface"
	}
	return scheme + "://" + a.String() + path
}

func (w welcome) scheme() string {
	if w.secure {
		return "https"
	}
	return "http"
}

// hint is a line for Docker's daemon.json, and for whom it is.
type hint struct{ what, line string }

// hints tell how Docker comes to use this cache, if it can have it for a mirror.
// Docker speaks plain HTTP to its own machine; for names with this host in them
// others must be told.
func (w welcome) hints() []hint {
	if !w.mirror {
		return nil
	}
	if scheme, address, ok := strings.Cut(w.reached, "://"); ok {
		insecure := ""
		if scheme == "http" {
			insecure = address
		}
		return []hint{{"For Docker, in /etc/docker/daemon.json:", daemonJSON(w.reached, insecure)}}
	}
	host, port, err := net.SplitHostPort(w.registry.String())
	if err != nil {
		return nil
	}
	ip := net.ParseIP(host)
	if w.secure {
		there := net.JoinHostPort(certifiedName(w.names, ip), port)
		return []hint{{"For Docker, in /etc/docker/daemon.json (and the authority of its certificate, if not a public one, in /etc/docker/certs.d/" + there + "/ca.crt):", daemonJSON("https://"+there, "")}}
	}
	var all []hint
	if ip.IsLoopback() || ip.IsUnspecified() {
		here := net.JoinHostPort("localhost", port)
		all = append(all, hint{"For Docker on this machine, in /etc/docker/daemon.json:", daemonJSON("http://"+here, "")})
	}
	if !ip.IsLoopback() {
		there := net.JoinHostPort(hostName(ip), port)
		all = append(all, hint{"On other machines:", daemonJSON("http://"+there, there)})
	}
	return all
}

// certifiedName is the first of a certificate's names that means us elsewhere,
// too.
func certifiedName(names []string, ip net.IP) string {
	for _, name := range names {
		if !strings.HasPrefix(name, "*") && name != "localhost" && !net.ParseIP(name).IsLoopback() {
			return name
		}
	}
	return hostName(ip)
}

// hostName is a name by which others may know this machine.
func hostName(ip net.IP) string {
	if !ip.IsUnspecified() {
		return ip.String()
	}
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "HOST"
}

func daemonJSON(mirror, insecure string) string {
	config := struct {
		Mirrors  []string `json:"registry-mirrors"`
		Insecure []string `json:"insecure-registries,omitempty"`
	}{Mirrors: []string{mirror}}
	if insecure != "" {
		config.Insecure = []string{insecure}
	}
	text, _ := json.Marshal(config)
	return string(text)
}
