// Command hub runs the fake Docker Hub of package ocitest, for a person to play
// with and for tests that are driven by a shell.
//
//	go run ./internal/cmd/hub -registry 127.0.0.1:7000 -control 127.0.0.1:7003
//
// Its remote control is described at ocitest.Control.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"entrepot/internal/ocitest"
	"entrepot/oci"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Args[1:], os.Stdout); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "hub:", err)
		os.Exit(1)
	}
}

// hello is what this binary says when it runs inside an image of its own.
const hello = "hello from an image of the fake hub"

func run(ctx context.Context, args []string, stdout io.Writer) error {
	if len(args) == 1 && args[0] == "hello" {
		fmt.Fprintln(stdout, hello)
		return nil
	}
	var cfg ocitest.Config
	flags := flag.NewFlagSet("hub", flag.ContinueOnError)
	flags.StringVar(&cfg.RegistryAddr, "registry", "127.0.0.1:0", "address of the registry")
	flags.StringVar(&cfg.TokenAddr, "token", "127.0.0.1:0", "address of the token service")
	flags.StringVar(&cfg.CDNAddr, "cdn", "127.0.0.1:0", "address of the CDN")
	flags.StringVar(&cfg.Hostname, "hostname", "localhost", "the name that it calls itself by in challenges and redirects")
	flags.BoolVar(&cfg.TLS, "tls", false, "serve https, with a certificate from a CA made on the spot")
	control := flags.String("control", "127.0.0.1:0", "address of the remote control, which go doc ./internal/ocitest Control describes")
	caFile := flags.String("ca", "", "write the CA's certificate to this file")
	habits := flags.String("habits", "{}", `habits to start with, as JSON: {"Auth":"none","PullLimit":100}`)
	binary := flags.String("run", "", `path of a static binary to make library/run of; "self" for this one (built with CGO_ENABLED=0)`)
	var users, images list
	flags.Var(&users, "user", "an account, name:password (may be repeated)")
	flags.Var(&images, "image", "an image of random layers, which no client can unpack, repository:tag=size,size,... in bytes (may be repeated)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(*habits), &cfg.Habits); err != nil {
		return fmt.Errorf("-habits: %w", err)
	}
	hub, err := ocitest.Start(cfg)
	if err != nil {
		return err
	}
	defer hub.Close()
	for _, user := range users {
		name, password, _ := strings.Cut(user, ":")
		hub.AddUser(name, password)
	}
	if err := fill(hub, *binary, images); err != nil {
		return err
	}
	if *caFile != "" && cfg.TLS {
		if err := os.WriteFile(*caFile, hub.CA(), 0o644); err != nil {
			return err
		}
	}
	return serveControl(ctx, hub, *control, stdout)
}

type list []string

func (l *list) String() string     { return strings.Join(*l, " ") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

// fill pushes one of each kind of content, and what the flags ask for.
func fill(hub *ocitest.Hub, binary string, images list) error {
	amd64 := ocitest.RandomImage(1, 1000, 3<<20)
	arm64 := ocitest.ImageSpec{
		Platform: oci.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"},
		Layers:   []ocitest.Content{ocitest.Blob(2, 2<<20)},
	}.Build()
	hub.Push("library/hello", "latest", ocitest.Index(amd64, arm64))
	hub.Push("library/hello", "docker", ocitest.ImageSpec{Docker: true, Layers: []ocitest.Content{ocitest.Blob(3, 1<<20)}}.Build())
	hub.Push("library/hello", "", ocitest.Artifact(amd64.Descriptor, "application/x.signature", ocitest.Blob(4, 100)))
	hub.Push("charts/hello", "0.1.0", ocitest.Chart("hello", "0.1.0"))
	if err := fillRunnable(hub, binary); err != nil {
		return err
	}
	for i, image := range images {
		name, sizes, _ := strings.Cut(image, "=")
		repo, tag, ok := strings.Cut(name, ":")
		if !ok {
			return fmt.Errorf("-image %s: want repository:tag=size,size", image)
		}
		var bytes []int64
		for size := range strings.SplitSeq(sizes, ",") {
			n, err := strconv.ParseInt(size, 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("-image %s: %q is not a number of bytes", image, size)
			}
			bytes = append(bytes, n)
		}
		hub.Push(repo, tag, ocitest.RandomImage(uint64(100+i), bytes...))
	}
	return nil
}

// fillRunnable pushes library/run in Docker's types, and in an OCI index.
func fillRunnable(hub *ocitest.Hub, binary string) error {
	var args []string
	switch binary {
	case "":
		return nil
	case "self":
		self, err := os.Executable()
		if err != nil {
			return err
		}
		binary, args = self, []string{"hello"}
	}
	docker, err := ocitest.Runnable(binary, args, true)
	if err != nil {
		return err
	}
	plain, err := ocitest.Runnable(binary, args, false)
	if err != nil {
		return err
	}
	hub.Push("library/run", "docker", docker)
	hub.Push("library/run", "latest", ocitest.Index(plain))
	return nil
}

// serveControl says where everything is and serves the remote control until
// ctx ends.
func serveControl(ctx context.Context, hub *ocitest.Hub, addr string, stdout io.Writer) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen for the remote control: %w", err)
	}
	fmt.Fprintf(stdout, "registry %s\ntoken    %s\ncdn      %s\ncontrol  http://%s\n\n", hub.URL(), hub.TokenURL(), hub.CDNURL(), ln.Addr())
	for _, line := range hub.Content() {
		fmt.Fprintln(stdout, line)
	}
	fmt.Fprintln(stdout, "ready")
	server := &http.Server{Handler: ocitest.Control(hub)}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
