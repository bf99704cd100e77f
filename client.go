package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"entrepot/access"
	"entrepot/certs"
	"entrepot/oci"
	"entrepot/operate"
	"entrepot/words"
)

const clientHelp = `Usage: entrepot client [flags] <client> [registry]

Prints, for one kind of client, the file that makes it pull through this server:
nothing but the file on standard output, and on standard error where it goes,
what has to be restarted, and how the client logs in. The settings are the
server's: run it with them.

  docker       daemon.json, for dockerd
  containerd   hosts.toml for every registry, or for the one that is named,
               which may be this server's own address
  podman       registries.conf for podman, buildah and skopeo
  crio         the same for CRI-O
  buildkit     buildkitd.toml
  k3s          registries.yaml, for k3s and RKE2

  --address ADDRESS   how clients reach the server: cache.example:5000, or with
                      https:// or http:// in front where that is not what its
                      settings say. Without it ENTREPOT_URL, or else the name
                      that the certificate or this machine has, and the port of
                      ENTREPOT_LISTEN
  --ca FILE           where clients have the certificate that signed the
                      server's, if they do not trust it anyway
  --cert FILE, --key FILE
                      where clients have a certificate of their own
  --user NAME, --password-file FILE
                      the login to write into a containerd's or k3s's file,
                      which have to be kept from others then; without them
                      there are words in its place

Examples:
  entrepot client docker >/etc/docker/daemon.json
  entrepot client containerd ghcr.io >/etc/containerd/certs.d/ghcr.io/hosts.toml
  entrepot client --address https://cache.example --ca /etc/ssl/cache.pem podman
`

// cacheServer is what a client's configuration says of this server. Its
// exported part is what the templates see.
type cacheServer struct {
	Address    string   // host:port, as it stands in the name of an image
	URL        string   // with the scheme
	Insecure   bool     // there is no TLS
	CA         string   // the client's file of certificates to trust; empty: those it has
	Cert, Key  string   // the client's own certificate; empty: it shows none
	Registries []string // those that clients may ask for
	Registry   string   // the one that is asked for; empty: all
	Origin     string   // that registry's URL, where clients may go without us
	Local      bool     // clients reach it as their own machine, which Docker trusts without TLS
	Login      bool     // clients have to say who they are, and no certificate does
	User       string   // who they are; words in place of a login that was not given
	Password   string
	Basic      string   // both, as a header has them
	Given      bool     // the login is one
	Public     []string // what of Docker Hub nobody has to log in for; nil: all or nothing
}

// Where clients are told to have a certificate, unless somebody says it.
const (
	clientCert = "/etc/entrepot/client.crt"
	clientKey  = "/etc/entrepot/client.key"
)

// clientConfig is how one kind of client is told of the server.
type clientConfig struct {
	name   string
	file   string // where the configuration goes
	single bool   // it can be for one registry alone
	login  bool   // there is a login in it
	body   string // template of the file
	notes  string // template of what else there is to do
}

// clientConfigs are the clients that we have words for, in the order of the
// help text.
func clientConfigs() []clientConfig {
	const containers = `{{range $i, $name := .Registries}}{{if $i}}
{{end}}[[registry]]
prefix = {{quote $name}}
location = {{quote $name}}
[[registry.mirror]]
location = {{quote (print $.Address "/" $name)}}
{{- if $.Insecure}}
insecure = true{{end}}
{{end}}`
	const certsD = `{{with .CA}}
It has to trust the server: copy {{.}} to DIR/{{$.Address}}/ca.crt.{{end}}{{with .Cert}}
It has to show a certificate: copy {{.}} to DIR/{{$.Address}}/client.cert and {{$.Key}} to client.key beside it.{{end}}`
	certificates := func(dir string) string { return strings.ReplaceAll(certsD, "DIR", dir) }
	const fillIn = `{{if and .Login (not .Given)}}
The server wants a login: `
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
Docker asks a mirror for Docker Hub's images alone; others by name: docker pull {{.Address}}/ghcr.io/...{{with .Public}}
It sends a mirror no login, and goes to Docker Hub without a word for what it does not get. Without one this server gives
{{range $i, $glob := .}}{{if $i}}, {{end}}{{$glob}}{{end}}; pull the rest by name: docker login {{$.Address}}, docker pull {{$.Address}}/docker.io/...{{end}}` + certificates("/etc/docker/certs.d"),
		},
		{
			name: "containerd", file: "/etc/containerd/certs.d/{{or .Registry \"_default\"}}/hosts.toml", single: true, login: true,
			body: `{{define "tls"}}{{with .CA}}ca = {{quote .}}
{{end}}{{with .Cert}}client = [[{{quote .}}, {{quote $.Key}}]]
{{end}}{{end}}{{with .Origin}}server = {{quote .}}
{{if eq . $.URL}}{{template "tls" $}}{{end}}
{{end}}[host.{{quote .URL}}]
capabilities = ["pull", "resolve"]
{{template "tls" .}}{{if .Login}}[host.{{quote .URL}}.header]
Authorization = {{quote .Basic}}
{{end}}`,
			notes: `containerd reads it anew for each pull, if its config.toml has, under the CRI plugin's registry,
config_path = "/etc/containerd/certs.d"; for ctr there is --hosts-dir.` + fillIn + `put what printf %s NAME:PASSWORD | base64 -w0 prints behind Basic, and keep the file from others.
Where anonymous may read what is pulled, the header may go.{{end}}`,
		},
		{
			name: "podman", file: "/etc/containers/registries.conf.d/50-entrepot.conf",
			body: `unqualified-search-registries = ["docker.io"]` + "\n\n" + containers,
			notes: `It is read for each pull. For one person it goes to ~/.config/containers/registries.conf.d/.{{if .Login}}
The server wants a login, and a mirror gets it: podman login {{.Address}}{{end}}` + certificates("/etc/containers/certs.d"),
		},
		{
			name: "crio", file: "/etc/containers/registries.conf.d/50-entrepot.conf",
			body: containers,
			notes: `Reload CRI-O (systemctl reload crio).{{if .Login}}
The server wants a login: podman login --authfile /etc/crio/auth.json {{.Address}}, and in crio.conf, under
[crio.image], global_auth_file = "/etc/crio/auth.json".{{end}}` + certificates("/etc/containers/certs.d"),
		},
		{
			name: "buildkit", file: "/etc/buildkit/buildkitd.toml",
			body: `{{range .Registries}}[registry.{{quote .}}]
  mirrors = [{{quote $.Address}}]

{{end}}[registry.{{quote .Address}}]
  http = {{.Insecure}}
{{- with .CA}}
  ca = [{{quote .}}]{{end}}
{{- with .Cert}}
  [[registry.{{quote $.Address}}.keypair]]
    key = {{quote $.Key}}
    cert = {{quote .}}{{end}}
`,
			notes: `If there is such a file already, add these tables to it. Restart buildkitd; docker buildx create takes it by --buildkitd-config.{{if .Login}}
The server wants a login, and BuildKit asks who builds for it: docker login {{.Address}}{{with .CA}}
Who builds has to trust the server, too, for its tokens; of buildctl:
--registry-auth-tlscontext host={{$.Address}},ca={{.}}{{end}}{{end}}`,
		},
		{
			name: "k3s", file: "/etc/rancher/k3s/registries.yaml", login: true,
			body: `mirrors:
{{- range .Registries}}
  {{quote .}}:
    endpoint:
      - {{quote $.URL}}
{{- end}}
{{- if or .CA .Cert .Login}}
configs:
  {{quote .Address}}:
{{- if .Login}}
    auth:
      username: {{quote .User}}
      password: {{quote .Password}}{{end}}
{{- if or .CA .Cert}}
    tls:
{{- with .CA}}
      ca_file: {{quote .}}{{end}}
{{- with .Cert}}
      cert_file: {{quote .}}
      key_file: {{quote $.Key}}{{end}}{{end}}{{end}}
`,
			notes: `Restart k3s. For RKE2 it is /etc/rancher/rke2/registries.yaml.` + fillIn + `write yours for NAME and PASSWORD, and keep the file from others.{{end}}`,
		},
	}
}

// clientFlags are what a person says of how clients come.
type clientFlags struct{ address, ca, cert, key, user, passwordFile string }

func (f *clientFlags) parse(args []string) ([]string, error) {
	flags := flag.NewFlagSet("client", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	for name, into := range map[string]*string{
		"address": &f.address, "ca": &f.ca, "cert": &f.cert, "key": &f.key, "user": &f.user, "password-file": &f.passwordFile,
	} {
		flags.StringVar(into, name, "", "")
	}
	args, err := operate.ParseArgs(flags, args)
	switch {
	case err != nil:
		return nil, usageError{fmt.Sprintf("client: %v: entrepot help client", err)}
	case (f.cert == "") != (f.key == ""):
		return nil, usageError{"client: want both --cert and --key"}
	case (f.user == "") != (f.passwordFile == ""):
		return nil, usageError{"client: want both --user and --password-file"}
	}
	return args, nil
}

// printClient prints how a client is configured.
func printClient(_ context.Context, in invocation) error {
	var flags clientFlags
	args, err := flags.parse(in.args)
	if err != nil {
		return err
	}
	if len(args) == 0 || len(args) > 2 {
		return usageError{"client: want one of " + clientNames() + ": entrepot help client"}
	}
	i := slices.IndexFunc(clientConfigs(), func(c clientConfig) bool { return c.name == args[0] })
	if i < 0 {
		return usageError{fmt.Sprintf("client: %s is none of %s: entrepot help client", words.Quote(args[0]), clientNames())}
	}
	c := clientConfigs()[i]
	if flags.user != "" && !c.login {
		return usageError{fmt.Sprintf("client: there is no login in the file of %s: entrepot client %s says how it logs in", c.name, c.name)}
	}
	cfg, err := operatorConfig(in.environ)
	if err != nil {
		return err
	}
	server, err := newCacheServer(cfg, flags)
	if err == nil && len(args) == 2 {
		err = server.only(cfg, c, args[1])
	}
	if err == nil && c.name == "docker" {
		err = server.mirrorsForDocker(cfg)
	}
	if err != nil {
		return err
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
// person says it, and what it wants of them.
func newCacheServer(cfg *Config, flags clientFlags) (s cacheServer, err error) {
	s = cacheServer{CA: flags.ca, Cert: flags.cert, Key: flags.key, Registries: cfg.clientRegistries()}
	scheme, address, err := cfg.reachedAt(flags.address)
	if err != nil {
		return s, err
	}
	if _, err := oci.NewRepository(strings.ToLower(address), "x"); err != nil || scheme != "http" && scheme != "https" {
		return s, usageError{fmt.Sprintf("client: --address: %s is no address: want host:port, such as cache.example:5000, or https:// before it", words.Quote(address))}
	}
	s.Address, s.URL, s.Insecure = address, scheme+"://"+address, scheme == "http"
	switch {
	case s.Insecure && s.CA != "":
		return s, usageError{"client: --ca is for a server with TLS, which this one has not: want --address https://... if something before it has"}
	case s.Insecure && s.Cert != "":
		return s, usageError{"client: --cert is for a server with TLS, which this one has not"}
	case !s.Insecure && s.Cert == "" && cfg.TLSClientAuth == "required":
		s.Cert, s.Key = clientCert, clientKey
	}
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	s.Local = host == "localhost" || net.ParseIP(strings.Trim(host, "[]")).IsLoopback()
	return s, s.signIn(cfg, flags)
}

// signIn finds out whether clients need a login, and takes the one that is given.
func (s *cacheServer) signIn(cfg *Config, flags clientFlags) error {
	s.Login = flags.user != "" || cfg.hasAccess() && (s.Cert == "" || cfg.TLSClientCAFile == "")
	s.User, s.Password, s.Basic = "NAME", "PASSWORD", "Basic NAME:PASSWORD-IN-BASE64"
	if flags.user == "" {
		return nil
	}
	secret, err := newSecretFile(flags.passwordFile)
	if err != nil {
		return fmt.Errorf("client: --password-file: %w", err)
	}
	s.User, s.Given = flags.user, true
	s.Password, err = secret.Value()
	s.Basic = "Basic " + base64.StdEncoding.EncodeToString([]byte(s.User+":"+s.Password))
	return err
}

// reachedAt is how clients reach the registry: what a person says, or the setting
// for that, or what the certificate and the listener have to say.
func (c *Config) reachedAt(said string) (scheme, address string, err error) {
	scheme = "http"
	if c.hasTLS() {
		scheme = "https"
	}
	if said == "" {
		said = string(c.URL)
	}
	if given, rest, ok := strings.Cut(said, "://"); ok {
		scheme, said = given, rest
	}
	if address = strings.TrimSuffix(said, "/"); address != "" {
		return scheme, address, nil
	}
	host, port := c.Listen.split()
	switch {
	case port == "0":
		return "", "", fmt.Errorf("client: ENTREPOT_LISTEN=%s leaves the port open: say where the server is by --address", c.Listen)
	case c.Listen.isLoopback():
		host = "localhost"
	default:
		ip := net.IPv6unspecified
		if !c.Listen.isEverywhere() {
			ip = net.ParseIP(host)
		}
		if name := certifiedName(c.certifiedNames(), ip); ip != nil {
			host = name
		}
	}
	return scheme, net.JoinHostPort(host, port), nil
}

// certifiedNames are the names of the registry's certificate, as far as they can
// be read by who asks.
func (c *Config) certifiedNames() []string {
	switch {
	case !c.hasTLS():
		return nil
	case len(c.TLSACMEDomains) > 0:
		return c.TLSACMEDomains
	}
	shown, err := certs.Open(c.certificates(nil))
	if err != nil {
		return nil // what is wrong with it is the server's to say
	}
	return shown.Names()
}

// clientRegistries are the registries that clients may ask for: the upstreams, and
// those that the names of cache rules begin with.
func (c *Config) clientRegistries() []string {
	all := c.upstreamNames()
	for _, r := range c.Rule {
		if host, _, _ := strings.Cut(r.Target.Name, "/"); oci.IsRegistry(host) && !slices.Contains(all, host) {
			all = append(all, host)
		}
	}
	return all
}

// only takes one registry for all.
func (s *cacheServer) only(cfg *Config, c clientConfig, registry string) error {
	registry = oci.FoldHost(registry)
	switch {
	case !c.single:
		return usageError{fmt.Sprintf("client: the file of %s is for all registries, and not for %s alone", c.name, words.Quote(registry))}
	case registry == s.Address: // names that have the cache's address in them
		s.Registry, s.Origin = registry, s.URL
		return nil
	case !slices.Contains(s.Registries, registry):
		return usageError{fmt.Sprintf("client: %s is not among the registries that this server pulls from: %s", words.Quote(registry), strings.Join(s.Registries, ", "))}
	}
	s.Registry, s.Origin = registry, "https://"+registry
	for _, u := range cfg.UpstreamSettings() {
		if u.Name == registry && u.URL != "" {
			s.Origin = u.URL
		}
	}
	if registry == oci.DockerHub {
		s.Origin = "https://registry-1.docker.io"
	}
	return nil
}

// mirrorsForDocker refuses to tell Docker of a mirror that gives it nothing.
func (s *cacheServer) mirrorsForDocker(cfg *Config) error {
	if s.Login {
		s.Public = cfg.publicGlobs(oci.DockerHub)
	}
	trouble := cfg.dockerMirrorTrouble()
	switch {
	case cfg.DefaultUpstream != oci.DockerHub:
		return fmt.Errorf("client: %s: name the server instead, as in docker pull %s/IMAGE", trouble, s.Address)
	case trouble != "" && s.Login:
		insecure := ""
		if s.Insecure && !s.Local {
			insecure = fmt.Sprintf(", with \"insecure-registries\": [%q] in daemon.json", s.Address)
		}
		return fmt.Errorf(`client: %s. Either name the server%s:
  docker login %[3]s
  docker pull %[3]s/docker.io/library/alpine
or let anonymous read what a mirror is for, such as docker.io/library/*, in %[4]s,
or give Docker a certificate that says who it is (%s), and then --cert and --key here`, trouble, insecure, s.Address, accessVar, tlsClientsVar)
	}
	return nil
}

// dockerMirrorTrouble says why Docker gets nothing from this server as its mirror,
// unless a certificate tells who it is; empty where it does.
func (c *Config) dockerMirrorTrouble() string {
	switch {
	case c.DefaultUpstream != oci.DockerHub:
		return fmt.Sprintf("Docker asks a mirror for names without a registry, which to it are Docker Hub's and here those of %s (ENTREPOT_DEFAULT_UPSTREAM)", c.DefaultUpstream)
	case c.hasAccess() && len(c.publicGlobs(oci.DockerHub)) == 0:
		return "Docker sends a mirror no login, and this server gives nothing of Docker Hub without one: Docker would go to Docker Hub without a word"
	}
	return ""
}

// publicGlobs are what of an upstream everybody may pull by the rights; nil for
// nothing, or where there are none.
func (c *Config) publicGlobs(upstream string) []string {
	if c.AccessFile == "" {
		return nil
	}
	content, err := readSmallFile(string(c.AccessFile))
	if err != nil {
		return nil
	}
	globs, _ := access.Public(content, c.Names(), upstream) // was checked
	return globs
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
