package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"entrepot/admin"
	"entrepot/store"
	"entrepot/words"
)

// connect finds who can answer for the data directory: the server that was
// named, or the one of ENTREPOT_ADMIN_LISTEN if it has that directory, or else
// this process, if no other has it open.
func connect(ctx context.Context, cfg *Config, version, server string) (*admin.Client, error) {
	token, err := cfg.AdminToken.Value()
	if err != nil {
		return nil, fmt.Errorf("ENTREPOT_ADMIN_TOKEN: %w", err)
	}
	if server != "" {
		return connectNamed(ctx, server, token)
	}
	running, unreached := connectServer(ctx, cfg, token)
	if running != nil {
		return running, nil
	}
	return openAtRest(ctx, cfg, version, unreached)
}

func connectNamed(ctx context.Context, server, token string) (*admin.Client, error) {
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, usageError{"--server: want the address of an admin listener, such as cache.example:5001 or http://127.0.0.1:5001"}
	}
	client := admin.NewClient(u.Scheme+"://"+u.Host, token)
	if _, err := client.About(ctx); err != nil {
		return nil, err
	}
	return client, nil
}

// connectServer asks the server of ENTREPOT_ADMIN_LISTEN. It is not the one if
// it has another data directory, unless there is none here and nobody said which.
func connectServer(ctx context.Context, cfg *Config, token string) (*admin.Client, error) {
	if cfg.AdminListen == "" {
		return nil, errors.New("ENTREPOT_ADMIN_LISTEN is empty")
	}
	host, port := cfg.AdminListen.reachable()
	if port == "0" {
		return nil, fmt.Errorf("ENTREPOT_ADMIN_LISTEN=%s leaves the port open", cfg.AdminListen)
	}
	client := admin.NewClient("http://"+net.JoinHostPort(host, port), token)
	about, err := client.About(ctx)
	if err != nil {
		return nil, err
	}
	_, missing := os.Stat(string(cfg.Data))
	if isSameDir(about.Data, string(cfg.Data)) || missing != nil && cfg.sources["ENTREPOT_DATA"] == "" {
		return client, nil
	}
	return nil, fmt.Errorf("the server at %s has another data directory, %s", client.Where(), words.Printable(about.Data))
}

// isSameDir reports whether a server's directory is ours, whatever its name.
func isSameDir(theirs, ours string) bool {
	a, aerr := os.Stat(theirs)
	b, berr := os.Stat(ours)
	if aerr == nil && berr == nil {
		return os.SameFile(a, b)
	}
	absolute, err := filepath.Abs(ours)
	return err == nil && absolute == theirs
}

// openAtRest opens the data directory in this process. unreached is why no
// server has it.
func openAtRest(ctx context.Context, cfg *Config, version string, unreached error) (*admin.Client, error) {
	dir := string(cfg.Data)
	if _, err := os.Stat(filepath.Join(dir, "VERSION")); err != nil { // Open would make one
		return nil, fmt.Errorf("ENTREPOT_DATA=%s is no data directory, and no server can be asked: %w; set ENTREPOT_DATA, or name a server by --server", dir, unreached)
	}
	disk, err := store.Open(ctx, store.Config{Dir: dir, LockWait: 1, Shares: cfg.shares()})
	if err != nil {
		return nil, fmt.Errorf("%w; nor can a server be asked: %w", err, unreached)
	}
	return admin.AtRest(newAdminAPI(disk, nil, cfg, version), dir, unreached, disk.Close), nil
}
