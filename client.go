package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"entrepot/oci"
	"entrepot/operate"
	"entrepot/words"
)

const clientHelp = `Usage: entrepot client [--address ADDRESS] [--ca FILE] <client> [registry]

Prints, for one kind of client, the file that makes it pull through this server:
nothing but the file on standard output, and on standard error where it goes and
what has to be restarted. The settings are the server's: run it with them.

  docker       daemon.json, for dockerd
  containerd   hosts.toml for every registry, or for the one that is named
  podman       registries.conf for podman, buildah and skopeo
  crio         the same for CRI-O
  buildkit     buildkitd.toml
  k3s          registries.yaml, for k3s and RKE2

  --address ADDRESS   how clients reach the server: cache.example:5000, or with
                      https:// or http:// in front where that is not what its
                      settings say. Without it the name of this machine and the
                      port of ENTREPOT_LISTEN
  --ca FILE           where clients have the certificate that signed the server's,
                      if they do not trust it anyway

Examples:
  entrepot client docker >/etc/docker/daemon.json
  entrepot client containerd ghcr.io >/etc/containerd/certs.d/ghcr.io/hosts.toml
  entrepot client --address https://cache.example --ca /etc/ssl/cache.pem podman
`

// cacheServer is what a client's configuration says of this server. Its
// exported part is what the templates see.
type cacheServer struct {
	Address   string   // host:port, as it stands in the name of an image
	URL       string   // with the scheme
	Insecure  bool     // there is no TLS
	CA        string   // the client's file of certificates to trust; empty: those it has
	Upstreams []string // the registries that are pulled from
	Registry  string   // the one that is asked for; empty: all
	Origin    string   // that registry's URL, where clients may go without us
	Local     bool     // clients reach it as their own machine, which Docker trusts without TLS
}

// clientConfig is how one kind of client is told of the server.
type clientConfig struct {
	name   string
	file   string // where the configuration goes
	single bool   // it can be for one registry alone
	body   string // template of the file
	notes  string // template of what else there is to do
}

// clientConfigs are the clients that we have words for, in the order of the
// help text.
func clientConfigs() []clientConfig {
	const containers = `{{range $i, $name := .Upstreams}}{{if $i}}
{{end}}[[registry]]
prefix = {{quote $name}}
location = {{quote $name}}
[[registry.mirror]]
location = {{quote (print $.Address "/" $name)}}
{{- if $.Insecure}}
insecure = true{{end}}
{{end}}`
	const containersCA = `{{with .CA}}
It has to trust the server: copy {{.}} to /etc/containers/certs.d/{{$.Address}}/ca.crt.{{end}}`
	return []clientConfig{
		{
			name: "docker", file: "/etc/docker/daemon.json",
			body: `{
  "registry-mirrors": [{{quote .URL}}]
{{- if and .Insecure (not .Local)}},
  "insecure-registries": [{{quote .Address}}]{{end}}
}
`,
			notes: `If there is such a file already, add these keys to it. Restart Docker.
Docker asks a mirror for Docker Hub's images alone; others by name: docker pull {{.Address}}/ghcr.io/...{{with .CA}}
It has to trust the server: copy {{.}} to /etc/docker/certs.d/{{$.Address}}/ca.crt.{{end}}`,
		},
		{
			name: "containerd", file: "/etc/containerd/certs.d/{{or .Registry \"_default\"}}/hosts.toml", single: true,
			body: `{{with .Origin}}server = {{quote .}}

{{end}}[host.{{quote .URL}}]
  capabilities = ["pull", "resolve"]
{{- with .CA}}
  ca = {{quote .}}{{end}}
`,
			notes: `containerd reads it anew for each pull, if its config.toml has, under the CRI plugin's registry,
config_path = "/etc/containerd/certs.d"; for ctr there is --hosts-dir.`,
		},
		{
			name: "podman", file: "/etc/containers/registries.conf.d/50-entrepot.conf",
			body:  `unqualified-search-registries = ["docker.io"]` + "\n\n" + containers,
			notes: `It is read for each pull. For one person it goes to ~/.config/containers/registries.conf.d/.` + containersCA,
		},
		{
			name: "crio", file: "/etc/containers/registries.conf.d/50-entrepot.conf",
			body:  containers,
			notes: `Reload CRI-O (systemctl reload crio).` + containersCA,
		},
		{
			name: "buildkit", file: "/etc/buildkit/buildkitd.toml",
			body: `{{range .Upstreams}}[registry.{{quote .}}]
  mirrors = [{{quote $.Address}}]

{{end}}[registry.{{quote .Address}}]
  http = {{.Insecure}}
{{- with .CA}}
  ca = [{{quote .}}]{{end}}
`,
			notes: `If there is such a file already, add these tables to it. Restart buildkitd; docker buildx create takes it by --buildkitd-config.`,
		},
		{
			name: "k3s", file: "/etc/rancher/k3s/registries.yaml",
			body: `mirrors:
{{- range .Upstreams}}
  {{quote .}}:
    endpoint:
      - {{quote $.URL}}
{{- end}}
{{- with .CA}}
configs:
  {{quote $.Address}}:
    tls:
      ca_file: {{quote .}}{{end}}
`,
			notes: `Restart k3s. For RKE2 it is /etc/rancher/rke2/registries.yaml.`,
		},
	}
}

// printClient prints how a client is configured.
func printClient(_ context.Context, in invocation) error {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	address, ca := flags.String("address", "", ""), flags.String("ca", "", "")
	args, err := operate.ParseArgs(flags, in.args)
	switch {
	case err != nil:
		return usageError{fmt.Sprintf("client: %v: entrepot help client", err)}
	case len(args) == 0 || len(args) > 2:
		return usageError{"client: want one of " + clientNames() + ": entrepot help client"}
	}
	i := slices.IndexFunc(clientConfigs(), func(c clientConfig) bool { return c.name == args[0] })
	if i < 0 {
		return usageError{fmt.Sprintf("client: %s is none of %s: entrepot help client", words.Quote(args[0]), clientNames())}
	}
	c := clientConfigs()[i]
	cfg, err := operatorConfig(in.environ)
	if err != nil {
		return err
	}
	server, err := newCacheServer(cfg, *address, *ca)
	if err == nil && len(args) == 2 {
		err = server.only(cfg, c, args[1])
	}
	switch {
	case err != nil:
		return err
	case c.name == "docker" && cfg.DefaultUpstream != oci.DockerHub:
		return fmt.Errorf("client: Docker asks a mirror for names without a registry, which to it are Docker Hub's and here those of %s (ENTREPOT_DEFAULT_UPSTREAM): name the server instead, as in docker pull %s/IMAGE", cfg.DefaultUpstream, server.Address)
	}
	return c.print(in, server)
}

func clientNames() string {
	var names []string
	for _, c := range clientConfigs() {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// newCacheServer finds out how clients reach the server that cfg is of, unless a
// person says it.
func newCacheServer(cfg *Config, address, ca string) (cacheServer, error) {
	s := cacheServer{CA: ca, Upstreams: cfg.upstreamNames()}
	scheme := "http"
	if cfg.hasTLS() {
		scheme = "https"
	}
	if given, rest, ok := strings.Cut(address, "://"); ok {
		scheme, address = given, rest
	}
	address = strings.TrimSuffix(address, "/")
	if address == "" {
		host, port := cfg.Listen.split()
		switch {
		case cfg.Listen.isLoopback():
			host = "localhost"
		case cfg.Listen.isEverywhere():
			host = hostName(net.IPv6unspecified)
		}
		if port == "0" {
			return s, fmt.Errorf("client: ENTREPOT_LISTEN=%s leaves the port open: say where the server is by --address", cfg.Listen)
		}
		address = net.JoinHostPort(host, port)
	}
	if _, err := oci.NewRepository(strings.ToLower(address), "x"); err != nil || scheme != "http" && scheme != "https" {
		return s, usageError{fmt.Sprintf("client: --address: %s is no address: want host:port, such as cache.example:5000, or https:// before it", words.Quote(address))}
	}
	if ca != "" && scheme != "https" {
		return s, usageError{"client: --ca is for a server with TLS, which this one has not: want --address https://... if something before it has"}
	}
	s.Address, s.URL, s.Insecure = address, scheme+"://"+address, scheme == "http"
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	s.Local = host == "localhost" || net.ParseIP(strings.Trim(host, "[]")).IsLoopback()
	return s, nil
}

// only takes one registry for all.
func (s *cacheServer) only(cfg *Config, c clientConfig, registry string) error {
	registry = oci.FoldHost(registry)
	all := cfg.UpstreamSettings()
	i := slices.IndexFunc(all, func(u UpstreamSettings) bool { return u.Name == registry })
	switch {
	case !c.single:
		return usageError{fmt.Sprintf("client: the file of %s is for all registries, and not for %s alone", c.name, words.Quote(registry))}
	case i < 0:
		return usageError{fmt.Sprintf("client: %s is not among the registries that this server pulls from: %s", words.Quote(registry), strings.Join(s.Upstreams, ", "))}
	}
	s.Registry, s.Origin = registry, all[i].URL
	switch {
	case registry == oci.DockerHub:
		s.Origin = "https://registry-1.docker.io"
	case s.Origin == "":
		s.Origin = "https://" + registry
	}
	return nil
}

// print writes the file to stdout, and what to do with it to stderr.
func (c clientConfig) print(in invocation, s cacheServer) error {
	var file, body, notes bytes.Buffer
	if err := errors.Join(s.expand(&file, c.file), s.expand(&body, c.body), s.expand(&notes, c.notes)); err != nil {
		return err
	}
	fmt.Fprintf(in.stderr, "This is %s.\n%s\n\n", &file, &notes)
	_, err := in.stdout.Write(body.Bytes())
	return err
}

// expand fills in a template. Strings are quoted as in JSON, which TOML and YAML
// read too.
func (s cacheServer) expand(w io.Writer, text string) error {
	t, err := template.New("client").Funcs(template.FuncMap{"quote": strconv.Quote}).Parse(text)
	if err != nil {
		return err
	}
	return t.Execute(w, s)
}
